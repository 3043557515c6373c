"use strict";
// One sample of the browser: what was asked, what was replied, and how each constraint was judged.
(() => {
  const { el, format } = seif;

  /** A text under its heading; none if it is empty. */
  function text(heading, value, kind = "") {
    if (!value) return null;
    const id = `text-${++text.count}`;
    const scrolls = value.length > 600; // a region that scrolls must be reachable by key
    return el("div", null, el("h4", { id }, heading), el("pre", {
      class: `prose ${kind}`, "aria-labelledby": id, tabindex: scrolls ? "0" : null, role: scrolls ? "region" : null,
    }, value));
  }
  text.count = 0;

  function mark(value) {
    if (value === null || value === undefined) return "–";
    return el("span", { class: value ? "yes" : "no" }, value ? "✓ yes" : "✗ no");
  }

  function constraintTable(constraints) {
    const judged = constraints.some(([, , rule, judge]) => rule !== null || judge !== null);
    const heads = judged ? ["Constraint", "Rule", "Judger", "p(yes)", "Counts"] : ["Constraint"];
    const rows = constraints.map(([constraint, kind, rule, judge, prob, analysis, value]) => {
      const disagree = rule !== null && judge !== null && rule !== judge;
      const first = el("td", null, el("div", null, constraint),
        el("div", { class: "kind" }, seif.data.kinds[kind] || kind, disagree ? " · rule and Judger disagree" : null),
        analysis ? el("details", null, el("summary", null, "Judger's analysis"), el("pre", { class: "prose" }, analysis)) : null);
      const verdicts = judged ? [mark(rule), mark(judge), format(prob), mark(value)].map((each) => el("td", null, each)) : [];
      return el("tr", { class: disagree ? "disagree" : null }, first, verdicts);
    });
    return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Constraints" },
      el("table", { class: "constraints" },
        el("caption", { class: "unseen" }, "Constraints with their verdicts"),
        el("thead", null, el("tr", null, heads.map((head) => el("th", { scope: "col" }, head)))),
        el("tbody", null, rows)));
  }

  function filterText(verdict) {
    if (!verdict) return null;
    const word = { true: "consistent", false: "contradictory" }[verdict.value] || "no verdict";
    return [`Filter: ${word}`, verdict.prob === null ? "" : ` (p ${format(verdict.prob)})`].join("");
  }

  const chip = (value, kind = "") => (value ? el("span", { class: `chip ${kind}` }, value) : null);

  /** The card of row i of an index; `sample` holds its texts, n and count its place in the list. */
  seif.sampleCard = (index, i, sample, n, count) => {
    const reward = index.reward[i];
    const reason = index.reasons[index.reason[i]];
    const place = `Round ${index.round} ${index.stage}, step ${index.step[i]}`;
    const row = index.row[i] === null ? "" : `prompt ${index.row[i]}`;
    const writes = index.stage === "instructor" || index.stage === "generate"; // instructions
    const asked = writes ? [text("Seed question", sample.seed)] : [text("Instruction", sample.instruction)];
    if (index.stage === "instructor" && sample.answer)
      asked.push(text("Instruction that the frozen Follower answered", sample.instruction));
    const said = [text("Thought", sample.thought, "thought"), text(writes ? "What the Instructor wrote" : "Reply", sample.reply),
      text(writes ? "Answer of the frozen Follower" : "Answer that was checked", sample.answer)];
    return el("article", { class: "card sample", "aria-label": `Sample ${n} of ${count}: ${place}` },
      el("header", null,
        el("span", { class: "reward" }, el("span", { class: "unseen" }, "Reward "), format(reward)),
        chip(reason.replaceAll("_", " "), "bad"), chip(place), chip(row + (sample.sample === undefined ? "" : `, sample ${sample.sample}`)),
        chip(sample.set), chip(sample.variant), chip(index.tokens[i] === null ? "" : `${format(index.tokens[i])} tokens`),
        chip(sample.finish_reason === "length" ? "cut off" : "", "bad"),
        chip(sample.advantage === undefined ? "" : `advantage ${format(sample.advantage)}`), chip(filterText(sample.filter))),
      sample.detail ? el("p", { class: "note" }, sample.detail) : null,
      el("div", { class: "texts" }, el("div", null, asked), el("div", null, said)),
      sample.constraints ? constraintTable(sample.constraints) : null,
      sample.filter?.text ? el("details", null, el("summary", null, "Filter's analysis"), el("pre", { class: "prose" }, sample.filter.text)) : null);
  };
})();
