// Everything that comes from people, links or the service enters the page through textContent: none of it is trusted.
(() => {
  "use strict";
  const TOKEN = "scpo_ray.token";
  const MIDDLE = 50; // where a slider stands until it is moved
  const LONGEST_FRAGMENT = 100_000; // characters; browsers drop or refuse much longer addresses
  const MANY = 24; // communities; a longer list starts closed

  const element = (id) => document.getElementById(id);
  const texts = { prompt: element("prompt"), a: element("response-a"), b: element("response-b") };
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const points = (share) => (100 * share).toFixed(1);
  const percent = (share) => `${points(share)}%`;
  const range = (interval) => (interval ? `[${interval.map(points).join(", ")}]` : "");
  const words = (input) => element(input).value.toLowerCase().split(/\s+/).filter(Boolean);

  let served = []; // CommunityFacts of everyone who is served
  let wanted = null; // names of the chosen communities; null: all
  const positions = new Map(); // community -> where its slider stands, unless in the middle
  let answered = null; // the question that the results answer; preferences and rows, most favourable first
  let busy = false;

  // The service

  class Refusal extends Error {}

  async function call(path, body) {
    const token = sessionStorage.getItem(TOKEN), headers = {};
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body) headers["Content-Type"] = "application/json";
    const request = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" };
    const answer = await fetch(path, request).catch(() => {
      throw new Refusal("The service cannot be reached. See that it runs, then try again.");
    });
    const content = await answer.json().catch(() => null);
    if (answer.ok && content) return content;
    if (answer.status === 401) askForToken();
    if (answer.status === 401 && !token) throw new Refusal(""); // the token's form says it
    const reason = typeof content?.error === "string" ? content.error : `HTTP ${answer.status}, and no reason given`;
    const wait = answer.headers.get("Retry-After") ?? "";
    throw new Refusal(/^\d+$/.test(wait) ? `${reason} (try again in ${wait} s)` : reason);
  }

  function askForToken() {
    sessionStorage.removeItem(TOKEN);
    element("token-form").hidden = false;
  }

  async function attempt(task, status) {
    if (busy) return;
    const button = element("compare"), hadFocus = document.activeElement === button;
    busy = button.disabled = true;
    element("results").ariaBusy = "true";
    element("status").textContent = status;
    element("alert").textContent = "";
    try {
      await task();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      element("alert").textContent = error.message;
    } finally {
      busy = button.disabled = false;
      element("results").ariaBusy = "false";
      element("status").textContent = "";
      if (!element("token-form").hidden) element("token").focus();
      else if (hadFocus && document.activeElement === document.body) button.focus(); // disabling took it away
    }
  }

  async function load() {
    const { run, communities } = await call("v1/communities");
    served = communities;
    if (element("token-form").contains(document.activeElement)) texts.prompt.focus();
    element("token-form").hidden = true;
    element("run").textContent = `Run ${run}`;
    listCommunities();
    describeModels();
    const isComplete = Object.values(texts).every((field) => field.value.trim()) && chosen().length;
    if (isComplete) await compare();
  }

  async function compare() {
    const asked = question();
    if (!chosen().length) throw new Refusal("No community is chosen. Choose at least one.");
    show(asked, await call("v1/compare", asked));
  }

  const chosen = () => served.map(({ name }) => name).filter((name) => wanted?.has(name) ?? true);

  function question() {
    const communities = wanted ? chosen() : "all";
    return { prompt: texts.prompt.value, response_a: texts.a.value, response_b: texts.b.value, communities };
  }

  // The state, in the address's fragment: it can be shared, and no server sees it

  function fragment() {
    const state = new URLSearchParams();
    for (const [key, field] of Object.entries(texts)) if (field.value) state.set(key, field.value);
    if (wanted) for (const name of wanted.size ? wanted : [""]) state.append("community", name);
    for (const [name, position] of positions) state.append("weight", `${position}:${name}`);
    return state.toString();
  }

  function keep() {
    const state = fragment(), kept = state.length > LONGEST_FRAGMENT ? "" : state;
    if (kept !== location.hash.slice(1)) history.replaceState(null, "", `#${kept}`);
  }

  let keeping;
  function keepSoon() {
    clearTimeout(keeping); // browsers ration changes of the address
    keeping = setTimeout(keep, 300);
  }

  function restore() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [key, field] of Object.entries(texts)) field.value = state.get(key) ?? "";
    if (state.has("community")) wanted = new Set(state.getAll("community").filter(Boolean));
    for (const entry of state.getAll("weight")) {
      const [, position, name] = /^(\d{1,3}):(.+)$/s.exec(entry) ?? [];
      if (name) move(name, Math.min(Number(position), 100));
    }
  }

  // The communities

  const stamp = (template) => element(template).content.firstElementChild.cloneNode(true);
  const choices = () => [...element("community-list").children];

  function listCommunities() {
    const names = served.map(({ name }) => name);
    element("community-list").replaceChildren(...names.map((name) => {
      const choice = stamp("choice");
      choice.dataset.name = choice.querySelector("bdi").textContent = name;
      choice.control.checked = wanted?.has(name) ?? true;
      return choice;
    }));
    const unknown = [...(wanted ?? [])].filter((name) => !names.includes(name));
    element("unknown").textContent = `Not served here, and left out: ${unknown.join(", ")}.`;
    element("unknown").hidden = !unknown.length;
    element("communities").open = served.length <= MANY;
    narrow("community-filter", "community-list");
    countChosen();
  }

  function choose() {
    const names = choices().filter((choice) => choice.control.checked).map((choice) => choice.dataset.name);
    wanted = names.length === served.length ? null : new Set(names);
    countChosen();
    changed();
  }

  function chooseShown(checked) {
    for (const choice of choices()) if (!choice.hidden) choice.control.checked = checked;
    choose();
  }

  function countChosen() {
    element("num-chosen").textContent = `${chosen().length} of ${served.length} chosen`;
  }

  function narrow(input, list) {
    for (const item of element(list).children) {
      item.hidden = !words(input).every((word) => item.dataset.name.toLowerCase().includes(word));
    }
  }

  function describeModels() {
    const number = (value) => (value === null ? "none" : String(Number(value.toPrecision(4))));
    element("models").replaceChildren(...served.map((community) => {
      const model = stamp("model"), interval = community.temperature_interval;
      model.querySelector("bdi").textContent = community.name;
      const facts = [
        ["Kind", community.kind],
        ["Temperature", number(community.temperature) + (interval ? ` [${interval.map(number).join(", ")}]` : "")],
        ["Mean reward", number(community.mean)],
        ["Standard deviation", number(community.standard_deviation)],
        ["Validation pairs", community.num_validation_pairs ?? "none"],
        ["Weights", community.model],
        ...Object.entries(community.facts),
      ];
      model.querySelector("dl").append(...facts.flatMap(([term, fact]) => [text("dt", term), text("dd", fact)]));
      return model;
    }));
    element("about").hidden = false;
  }

  function text(tag, content, className = "") {
    return Object.assign(document.createElement(tag), { textContent: content, className });
  }

  // The answer

  function show(asked, { communities, disagreement }) {
    const preferences = [...communities].sort((one, other) => other.probability - one.probability);
    answered = { asked, preferences, rows: preferences.map(chartRow) };
    element("rows").replaceChildren(...answered.rows);
    element("cells").replaceChildren(...preferences.map(tableRow));
    element("summary").textContent = summary(preferences, disagreement);
    element("marks").hidden = !preferences.some(marks);
    element("stale").hidden = true;
    element("answer").hidden = false;
    narrow("row-filter", "rows");
    steer();
  }

  function summary(preferences, { most_favourable, least_favourable, highest, lowest, standard_deviation }) {
    const isolated = (name) => `\u2068${name}\u2069`; // a name written right to left leaves the sentence as it is
    const most = isolated(most_favourable), least = isolated(least_favourable);
    if (preferences.length === 1) return `${most} would rather have A with probability ${percent(highest)}.`;
    const forA = preferences.filter(({ probability }) => probability > 0.5).length;
    return `${forA} of ${preferences.length} communities would rather have A. ` +
      `Most favourable to A is ${most} with ${percent(highest)}, least ${least} with ${percent(lowest)}; ` +
      `the standard deviation over communities is ${points(standard_deviation)} points.`;
  }

  function marks({ is_calibrated, truncated }) {
    return [!is_calibrated && "not calibrated", truncated && "truncated"].filter(Boolean).join(", ");
  }

  function chartRow(preference) {
    const { community, probability, interval } = preference;
    const row = stamp("row"), slider = row.querySelector("input"), whisker = row.querySelector(".whisker");
    row.dataset.name = row.querySelector("bdi").textContent = community;
    row.querySelector(".mark").textContent = marks(preference);
    row.querySelector(".probability").textContent = percent(probability);
    row.querySelector(".range").textContent = range(interval);
    drawBar(row.querySelector(".bar"), probability);
    whisker.hidden = !interval;
    if (interval) place(whisker, ...interval);
    slider.ariaLabel = `Weight of ${community}`;
    slider.addEventListener("input", () => {
      move(community, Number(slider.value));
      steer();
    });
    return row;
  }

  function drawBar(bar, probability) {
    place(bar, Math.min(probability, 0.5), Math.max(probability, 0.5));
    bar.classList.toggle("b", probability < 0.5);
  }

  function place(mark, low, high) {
    mark.style.left = `${100 * low}%`;
    mark.style.width = `${100 * (high - low)}%`;
  }

  function tableRow(preference) {
    const { community, probability, interval, reward_margin } = preference;
    const row = document.createElement("tr"), header = Object.assign(text("th", community), { scope: "row" });
    const numbers = [percent(probability), range(interval) || "none", reward_margin.toFixed(3)];
    row.append(header, ...numbers.map((number) => text("td", number, "n")), text("td", marks(preference)));
    return row;
  }

  // Steering

  function move(name, position) {
    if (position === MIDDLE) positions.delete(name);
    else positions.set(name, position);
    keepSoon();
  }

  function moveAll(position) {
    for (const { community } of answered.preferences) move(community, position);
    steer();
  }

  function weights() {
    const values = answered.preferences.map(({ community }) => positions.get(community) ?? MIDDLE);
    const total = sum(values);
    return values.map((value) => (total ? value / total : 0));
  }

  function steer() {
    const shares = weights(), isSteered = shares.some((share) => share > 0);
    answered.rows.forEach((row, index) => {
      const slider = row.querySelector("input");
      slider.value = positions.get(row.dataset.name) ?? MIDDLE;
      slider.ariaValueText = row.querySelector(".share").textContent = percent(shares[index]);
    });
    const steered = sum(answered.preferences.map(({ probability }, index) => shares[index] * probability));
    element("steered").textContent = isSteered ? percent(steered) : "no weights";
    drawBar(document.querySelector(".steered .bar"), isSteered ? steered : 0.5);
    element("copy-json").disabled = !isSteered;
  }

  // In millionths, the largest remainders up: the sum is 1 with any number of communities.
  function rounded(shares) {
    const millionths = shares.map((share) => Math.floor(1e6 * share));
    const remainder = (index) => 1e6 * shares[index] - millionths[index];
    const order = [...shares.keys()].sort((one, other) => remainder(other) - remainder(one));
    for (const index of order.slice(0, 1e6 - sum(millionths))) millionths[index] += 1;
    return millionths.map((count) => count / 1e6);
  }

  function steeredQuestion() {
    const shares = rounded(weights());
    const entries = answered.preferences.map(({ community }, index) => [community, shares[index]]);
    return JSON.stringify({ ...answered.asked, communities: Object.fromEntries(entries) }, null, 2);
  }

  async function copy(button, content) {
    const label = (button.dataset.label ??= button.textContent);
    document.querySelector(".manual")?.remove();
    try {
      await navigator.clipboard.writeText(content);
      button.textContent = "Copied";
      element("status").textContent = "Copied";
      setTimeout(() => (button.textContent = label), 2000);
    } catch { // without https or a permission there is no clipboard: the text, to copy by hand
      const manual = Object.assign(text("textarea", content, "manual"), { readOnly: true, ariaLabel: "Text to copy" });
      button.parentElement.after(manual);
      manual.select();
    }
  }

  // What people do

  function changed() {
    if (answered) element("stale").hidden = JSON.stringify(question()) === JSON.stringify(answered.asked);
    keepSoon();
  }

  async function compareAndGoThere() {
    keep();
    await attempt(served.length ? compare : load, "Comparing…");
    const heading = document.querySelector("#answer h2"), isBelow = heading.getBoundingClientRect().top > innerHeight;
    if (!element("alert").textContent && isBelow) heading.scrollIntoView();
  }

  function useToken() {
    const field = element("token"), token = field.value.trim(), fits = /^[!-~]+$/.test(token);
    element("alert").textContent = fits ? "" : "A token is letters, digits and signs, without spaces.";
    if (!fits) return;
    sessionStorage.setItem(TOKEN, token);
    field.value = "";
    attempt(load, "Loading…");
  }

  function copyLink() {
    keep();
    const isShort = fragment().length <= LONGEST_FRAGMENT;
    element("alert").textContent = isShort ? "" : "The texts are too long for a link.";
    if (isShort) copy(element("copy-link"), location.href);
  }

  const on = (id, event, react) => element(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    react();
  });
  on("token-form", "submit", useToken);
  on("question", "submit", compareAndGoThere);
  for (const field of Object.values(texts)) on(field.id, "input", changed);
  on("community-list", "change", choose);
  on("choose-all", "click", () => chooseShown(true));
  on("choose-none", "click", () => chooseShown(false));
  on("community-filter", "input", () => {
    narrow("community-filter", "community-list");
    const shown = words("community-filter").length ? " shown" : "";
    element("choose-all").textContent = `All${shown}`;
    element("choose-none").textContent = `None${shown}`;
  });
  on("row-filter", "input", () => narrow("row-filter", "rows"));
  on("equal", "click", () => moveAll(MIDDLE));
  on("zero", "click", () => moveAll(0));
  on("copy-json", "click", () => copy(element("copy-json"), steeredQuestion()));
  on("copy-link", "click", copyLink);
  document.addEventListener("keydown", (event) => {
    const isShortcut = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (!isShortcut || element("token-form").contains(event.target)) return;
    event.preventDefault();
    if (!busy) element("question").requestSubmit();
  });
  addEventListener("hashchange", () => location.reload());
  restore();
  attempt(load, "Loading…");
})();
