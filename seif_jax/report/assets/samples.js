"use strict";
// The browser of samples. An index of small columns is loaded per stage, texts in parts as they are
// read: a script is added for each, as a page opened from disk may not fetch files.
(() => {
  const { el, format } = seif;
  const PAGE = 10; // samples
  const KEPT_PARTS = 24; // in memory
  const indexes = new Map(); // key of a stage → its index
  const parts = new Map(); // "key/number" → rows, the latest used last
  const loading = new Map(); // path → promise

  seif.index = (index) => { indexes.set(index.key, index); };
  seif.part = ({ key, part, rows }) => { parts.set(`${key}/${part}`, rows); };

  function load(path) {
    if (!loading.has(path)) {
      loading.set(path, new Promise((resolve, reject) => {
        const script = el("script", { src: `data/samples/${path}.js` });
        script.onload = () => { script.remove(); resolve(); };
        script.onerror = () => { script.remove(); loading.delete(path); reject(new Error(`data/samples/${path}.js cannot be read`)); };
        document.head.append(script);
      }));
    }
    return loading.get(path);
  }

  async function rowsOf(key, part) {
    const name = `${key}/${part}`;
    await load(`${key}/part_${part}`);
    const rows = parts.get(name);
    parts.delete(name);
    parts.set(name, rows);
    for (const old of [...parts.keys()].slice(0, -KEPT_PARTS)) {
      parts.delete(old);
      loading.delete(old.replace(/\/(\d+)$/, "/part_$1"));
    }
    return rows;
  }

  /** The last i with starts[i] <= row. */
  function partOf(starts, row) {
    let [low, high] = [0, starts.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= row) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Which rows of an index the filters let through. */
  function matching(index, f) {
    const reason = f.reason === "" ? null : index.reasons.indexOf(f.reason === "none" ? "" : f.reason);
    const kinds = f.kind && new Set(index.kind_sets.map((set, i) => (set.includes(f.kind) ? i : -1)));
    const found = [];
    for (let i = 0; i < index.step.length; i++) {
      const reward = index.reward[i];
      if (index.step[i] < f.steps[0] || index.step[i] > f.steps[1]) continue;
      if (f.bounded && (reward === null || reward < f.rewards[0] || reward > f.rewards[1])) continue;
      if (reason !== null && index.reason[i] !== reason) continue;
      if (kinds && !kinds.has(index.kinds[i])) continue;
      if (f.disagree && !index.disagree[i]) continue;
      found.push([index, i]);
    }
    return found;
  }

  const ORDERS = {
    sampled: ["As sampled", null, 1],
    best: ["Highest reward", "reward", -1],
    worst: ["Lowest reward", "reward", 1],
    longest: ["Longest reply", "tokens", -1],
    shortest: ["Shortest reply", "tokens", 1],
  };

  function sorted(found, order) {
    const [, column, sign] = ORDERS[order];
    if (!column) return found;
    const missing = Infinity; // comes last
    const rank = ([index, i]) => (index[column][i] === null ? missing : sign * index[column][i]);
    return found.sort((a, b) => rank(a) - rank(b) || 0);
  }

  seif.browser = (report) => {
    if (!report.stages.length) return null;
    const stages = report.stages;
    const unique = (name) => [...new Set(stages.map((stage) => stage[name]))];
    const last = [...stages].reverse().find((stage) => stage.stage === "follower") || stages[stages.length - 1];
    const select = (name, label, options, value) => {
      const input = el("select", { name }, options.map(([key, text]) => el("option", { value: key }, text)));
      input.value = value ?? "";
      return el("label", null, label, input);
    };
    const pair = (name, label, attributes) => el("fieldset", { class: "pair" }, el("legend", null, label),
      el("div", null, ["from", "to"].map((end) =>
        el("input", { type: "number", name: `${name}-${end}`, placeholder: end, "aria-label": `${label} ${end}`, ...attributes }))));
    const any = ["", "All"];
    const form = el("form", { class: "filters", "aria-label": "Filters" },
      report.runs.length > 1 ? select("run", "Run", [any, ...unique("run").map((n) => [n, n])], last.run) : null,
      select("round", "Round", [any, ...unique("round").map((n) => [String(n), String(n)])], String(last.round)),
      select("stage", "Stage", [any, ...unique("stage").map((n) => [n, n[0].toUpperCase() + n.slice(1)])], last.stage),
      pair("step", "Step", { min: 0, step: 1 }),
      pair("reward", "Reward", { min: 0, max: 1, step: "any" }),
      select("reason", "Scored nothing because", [any, ["none", "(no reason: above 0)"], ...Object.keys(report.reasons).map((r) => [r, r.replaceAll("_", " ")])]),
      select("kind", "Kind of constraint", [any, ...Object.entries(report.kinds)]),
      select("order", "Order", Object.entries(ORDERS).map(([key, [text]]) => [key, text]), "sampled"),
      el("label", { class: "tick" }, el("input", { type: "checkbox", name: "disagree" }), "Rule ≠ Judger"));
    const status = el("p", { class: "status", role: "status" });
    const list = el("div", { class: "list" });
    const pagers = [];
    let found = [];
    let page = 0;
    let asked = 0;

    function pager() {
      const previous = el("button", { type: "button", onclick: () => turn(-1) }, "Previous");
      const next = el("button", { type: "button", onclick: () => turn(1) }, "Next");
      pagers.push([previous, next]);
      return [previous, next];
    }

    function filters() {
      const field = (name) => form.elements[name]?.value ?? "";
      const number = (name, otherwise) => (field(name) === "" ? otherwise : Number(field(name)));
      return {
        run: field("run"), round: field("round"), stage: field("stage"), reason: field("reason"), kind: field("kind"),
        order: field("order"), disagree: form.elements.disagree.checked,
        steps: [number("step-from", -Infinity), number("step-to", Infinity)],
        rewards: [number("reward-from", -Infinity), number("reward-to", Infinity)],
        bounded: field("reward-from") !== "" || field("reward-to") !== "",
      };
    }

    async function apply() {
      const f = filters();
      const turnOf = ++asked;
      const wanted = stages.filter((s) => (!f.run || s.run === f.run) && (!f.round || String(s.round) === f.round) && (!f.stage || s.stage === f.stage));
      status.textContent = "Loading …";
      try {
        await Promise.all(wanted.map((stage) => load(`${stage.key}/index`)));
        if (turnOf !== asked) return;
        found = sorted(wanted.flatMap((stage) => matching(indexes.get(stage.key), f)), f.order);
        page = 0;
        await show(turnOf);
      } catch (error) {
        status.textContent = error.message;
      }
    }

    async function show(turnOf) {
      const shown = found.slice(page * PAGE, (page + 1) * PAGE);
      const cards = await Promise.all(shown.map(async ([index, i], n) => {
        const part = partOf(index.starts, i);
        const rows = await rowsOf(index.key, part);
        return seif.sampleCard(index, i, rows[i - index.starts[part]], page * PAGE + n + 1, found.length);
      }));
      if (turnOf !== asked) return;
      list.replaceChildren(...cards);
      const pages = Math.ceil(found.length / PAGE);
      status.textContent = found.length
        ? `${format(found.length)} samples, page ${format(page + 1)} of ${format(pages)}` : "No samples match";
      for (const [previous, next] of pagers) {
        previous.disabled = page === 0;
        next.disabled = page >= pages - 1;
      }
    }

    async function turn(by) {
      page += by;
      try { await show(++asked); } catch (error) { status.textContent = error.message; }
      section.querySelector(".bar").scrollIntoView({ block: "start" });
    }

    function preset(values) {
      for (const input of form.elements) {
        if (input.type === "checkbox") input.checked = Boolean(values[input.name]);
        else if (input.name in values) input.value = values[input.name];
        else if (!["run", "round", "stage"].includes(input.name)) input.value = input.name === "order" ? "sampled" : "";
      }
      apply();
    }

    const button = (text, values) => el("button", { type: "button", onclick: () => preset(values) }, text);
    form.addEventListener("change", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    const section = el("section", { id: "samples", "data-link": "Samples", "aria-labelledby": "samples-title" },
      el("div", { class: "head" }, el("div", null, el("h2", { id: "samples-title" }, "Read the samples"),
        el("p", { class: "lead" }, "A reward sees constraints and nothing else. What else happened is in the replies."))),
      el("div", { class: "card" }, form),
      el("div", { class: "bar" }, status, button("Best", { order: "best" }), button("Worst", { order: "worst" }),
        button("Rule ≠ Judger", { disagree: true }), button("Reset", {}), pager()),
      list, el("div", { class: "bar" }, el("span", { class: "status" }), pager()));
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      apply();
    }, { rootMargin: "600px" }).observe(section);
    return section;
  };
})();
