"""The kinds of events in the invented account behind the stand-in for Billetweb. Imports nothing of syncd."""

from msgspec import Struct


class Tariff(Struct, frozen=True):
    """What a ticket of a kind of event is made from; `quota` None: no limit of its own.

    `visibility`: `0` and `1` are shown to the public. Its sale begins and ends so many days from now, where
    that is given.
    """

    name: str
    price: float
    commission: float | bool
    quota: int | None = None
    category: str = ""
    visibility: str = "0"
    begins_in: int | None = None
    ends_in: int | None = None


class Kind(Struct, frozen=True, kw_only=True):
    """A kind of event: `places` is the whole event's limit, or each session's where there are `sessions`.

    `left` places remain at the start; without it a good part has been sold. The last session is hidden from
    the public where `hides_last`; places are numbered seats where it is `seated`.
    """

    tag: str
    titles: tuple[str, ...]
    tariffs: tuple[Tariff, ...]
    places: int | None = None
    categories: tuple[tuple[str, int], ...] = ()
    sessions: int = 0
    hour: int = 14
    hours: int = 3
    left: int | None = None
    hides_last: bool = False
    seated: bool = False

    @property
    def capacity(self) -> int:
        """How many places there are in all; a plausible audience where there is no limit."""
        limits = [limit for _, limit in self.categories] or [tariff.quota or 0 for tariff in self.tariffs]
        return (self.places or 0) * max(self.sessions, 1) or sum(limits) or 200


KINDS = (
    Kind(
        tag="festival",
        titles=("Fête des lucioles", "Festival Terre & Vent", "Nuit des chauves-souris", "Bal des moissons"),
        tariffs=(
            Tariff("Plein tarif ", 12.5, 0.65),  # the space is meant: organisers leave some
            Tariff("Tarif réduit", 8, 0.5),
            Tariff("Moins de 12 ans", 0, False, quota=40),
        ),
        places=120,
        hour=10,
        hours=8,
    ),
    Kind(
        tag="stage",
        titles=("Deux jours au bord de l'eau", "Week-end traces & empreintes", "Stage d'ornithologie"),
        tariffs=(
            Tariff("Plein tarif", 45, 1.2, category="Samedi"),
            Tariff("Tarif réduit", 32.5, 0.95, quota=15, category="Samedi"),
            Tariff("Plein tarif", 45, 1.2, category="Dimanche"),
            Tariff("Tarif réduit", 32.5, 0.95, category="Dimanche"),
        ),
        categories=(("Samedi", 50), ("Dimanche", 45)),
        hour=9,
        hours=33,
    ),
    Kind(
        tag="atelier",
        titles=("Atelier vannerie sauvage", "Pain & levain : l'atelier du fournil", "Teintures végétales"),
        tariffs=(Tariff("Participant", 38, 1.05, quota=12), Tariff("Étudiant", 22.5, 0.8, quota=4)),
    ),
    Kind(
        tag="conférence",
        titles=("Portes ouvertes du jardin", "Conférence : le retour du castor", "Ciné plein air"),
        tariffs=(Tariff("Entrée libre", 0, False), Tariff("Entrée de soutien 🌱", 5, 0.35)),
        hour=18,
    ),
    Kind(
        tag="sortie",
        titles=("Balade contée au crépuscule", "Sortie castors en canoë", "Observation des étoiles"),
        tariffs=(Tariff("Adulte", 9.5, 0.55), Tariff("Enfant", 5, False)),
        places=20,
        sessions=4,
        hour=17,
    ),
    Kind(
        tag="concert",
        titles=("Concert à la grange", "Le chœur des roseaux", "Fanfare au clair de lune"),
        tariffs=(Tariff("Placement libre", 18, 0.79), Tariff("Adhérent", 14.5, 0.7)),
        places=180,
        hour=20,
        left=3,
    ),
)

FURTHER_KINDS = (
    Kind(
        tag="veillée",
        titles=("Veillée au coin du feu", "Repas partagé du solstice", "Soirée des bénévoles"),
        tariffs=(
            Tariff("Adulte", 11, 0.6, quota=30),
            Tariff("Enfant", 6, 0.4, quota=20, visibility="1"),
            Tariff("Équipe", 0, False, visibility="2"),  # by a link of its own, and without limit
        ),
        hour=19,
    ),
    Kind(
        tag="randonnée",
        titles=("Randonnée des trois moulins", "Traversée des marais", "Marche de nuit"),
        tariffs=(
            Tariff("Prévente", 10, 0.6, quota=20, ends_in=-1),  # over, with places left
            Tariff("Plein tarif", 14, 0.7, quota=40),
            Tariff("Dernière minute", 18, 0.8, quota=10, begins_in=10),
        ),
        hour=8,
    ),
    Kind(
        tag="visite",
        titles=("Visite du moulin", "Visite des serres", "Visite de la tour"),
        tariffs=(Tariff("Visiteur", 4.5, 0.4), Tariff("Guide", 0, False, visibility="3")),
        places=20,
        sessions=3,
        hour=15,
        hours=1,
        hides_last=True,
    ),
    Kind(
        tag="théâtre",
        titles=("Théâtre sous les tilleuls", "Les marionnettes du meunier", "Contes pour grandes oreilles"),
        tariffs=(
            Tariff("Plein tarif", 20, 0.85, category="Salle > Balcon"),
            Tariff("Plein tarif", 26, 0.95, category=" Salle > Parterre "),  # the spaces are meant
            Tariff("Tarif réduit", 18, 0.8, quota=15, category="Salle > Parterre"),
        ),
        categories=(("Balcon", 40), ("Parterre", 60)),
        hour=20,
        seated=True,
    ),
)
"""Those that show the public less than they hold; after KINDS in their turn."""
