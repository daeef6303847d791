"use strict";
// Asks for the page again and puts what differs in place, so that nothing flickers and the focus stays.
(() => {
  const BUSY_MS = 1000; // a run of a small account takes a second or two
  const IDLE_MS = 10000; // sooner than a person gets impatient, and next to nothing for the daemon
  const WHOLE_MS = 60000; // what changes without a run, such as deliveries, is seen within a minute
  const LOST_MS = 10000; // a daemon that hangs is told of
  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const part = (name) => document.querySelector(`[data-part="${name}"]`);
  const said = document.getElementById("said");
  const lost = document.getElementById("lost");
  const form = document.getElementById("ask");
  const button = form.querySelector("button");
  const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const short = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  const busy = () => part("now").dataset.busy === "yes";
  const runs = () => part("now").dataset.runs;
  let timer, saying = "", loading = false, shownRuns = runs(), shownAt = Date.now();

  function span(seconds) {
    let rest = seconds >= 86400 ? Math.round(seconds / 3600) * 3600
      : seconds >= 3600 ? Math.round(seconds / 60) * 60 : seconds;
    const words = [];
    for (const [size, unit] of UNITS) {
      if (rest >= size) words.push(`${Math.floor(rest / size)} ${unit}`);
      rest %= size;
    }
    return words.join(" ") || "0 s";
  }

  // Without seconds, for what stands in many rows: a page whose every line moves is hard to read.
  function coarse(seconds) {
    if (seconds < 60) return "just now";
    const [size, unit] = UNITS.find(([size]) => seconds >= size);
    return `${Math.floor(seconds / size)} ${unit} ago`;
  }

  // The times of a document, in the zone of whoever looks.
  function tick(root) {
    for (const time of root.querySelectorAll("time")) {
      const at = new Date(time.dateTime);
      let shown = ("short" in time.dataset ? short : dates).format(at);
      if ("since" in time.dataset) {
        const ahead = Math.round((at - Date.now()) / 1000);
        time.title = shown;
        if (time.dataset.since === "coarse") shown = coarse(-ahead);
        else shown = ahead > 0 ? `in ${span(ahead)}` : `${span(-ahead)} ago`;
      }
      if (time.textContent !== shown) time.textContent = shown;
    }
  }

  function morph(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const news = [...fresh.childNodes];
    [...old.childNodes].forEach((node, index) => morph(node, news[index]));
  }

  function take(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    if (!fresh.getElementById("ask")) throw new Error("something else answered");
    tick(fresh);
    document.title = fresh.title;
    for (const node of fresh.querySelectorAll("[data-part]")) {
      const old = part(node.dataset.part);
      if (old) morph(old, node);
    }
    const say = part("now").dataset.say;
    if (say !== saying) said.textContent = saying = say;
  }

  async function load(query, options) {
    const answer = await fetch(location.pathname + query, {
      ...options, cache: "no-store", signal: AbortSignal.timeout(LOST_MS),
    });
    const body = await answer.text();
    if (!answer.ok) throw new Error(answer.headers.get("Content-Type")?.includes("json") ? JSON.parse(body).error.message : body.slice(0, 300));
    take(body);
    if (!query.includes("only=now")) [shownRuns, shownAt] = [runs(), Date.now()];
    if (answer.redirected) history.replaceState(null, "", location.pathname + new URL(answer.url).search);
    lost.hidden = true;
  }

  function fail(what, error) {
    const why = error.name === "TimeoutError" || error instanceof TypeError ? "no answer" : error.message.trim();
    const text = `${what}: ${why}`;
    if (lost.textContent !== text) lost.textContent = text;
    lost.hidden = false;
  }

  async function refresh(whole) {
    if (loading) return;
    loading = true;
    clearTimeout(timer);
    try {
      const query = new URLSearchParams(location.search);
      if (!whole && Date.now() - shownAt < WHOLE_MS) {
        query.set("only", "now");
        await load(`?${query}`);
        query.delete("only");
      }
      if (whole || runs() !== shownRuns || Date.now() - shownAt >= WHOLE_MS) await load(`?${query}`);
    } catch (error) {
      fail("This page is not up to date, and tries again", error);
    } finally {
      loading = false;
      timer = setTimeout(() => refresh(false), busy() ? BUSY_MS : IDLE_MS);
    }
  }

  async function ask() {
    while (loading) await new Promise((resolve) => setTimeout(resolve, 20)); // an answer from before must not come after
    loading = true;
    clearTimeout(timer);
    const body = new URLSearchParams(new FormData(form));
    let error;
    try {
      await load("", { method: "POST", body });
    } catch (caught) {
      error = caught;
    }
    loading = false;
    if (!error) {
      timer = setTimeout(() => refresh(false), BUSY_MS / 4);
      return;
    }
    await refresh(true);
    // A daemon that was started anew has another token, and has been asked nothing yet.
    if (form.elements.token.value !== body.get("token")) await ask();
    else fail("No run was asked for", error);
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    await ask();
    button.removeAttribute("aria-busy");
  });

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) refresh(true);
  });
  document.getElementById("zone").textContent = "Times are those of your device.";
  tick(document);
  setInterval(() => tick(document), 1000);
  timer = setTimeout(() => refresh(false), busy() ? BUSY_MS : IDLE_MS);
})();
