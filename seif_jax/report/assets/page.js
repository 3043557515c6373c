"use strict";
// The page: title, headline, sections; called by data/report.js with all that they show.
(() => {
  const { el, format } = seif;

  seif.report = (report) => {
    seif.data = report;
    document.title = `${report.title} · SEIF report`;
    setTheme(saved() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    const browser = seif.browser(report);
    const sections = [...report.sections.map(section), ...(browser ? [browser] : [])];
    document.getElementById("main").replaceChildren(hero(report), ...sections);
    navigation(sections);
    seif.redraw(); // the legends' colours
    document.getElementById("footer").append(
      `Made by seif_jax ${report.version}. Nothing on this page is loaded from a network.`);
  };

  function hero(report) {
    const [run] = report.runs;
    const single = report.runs.length === 1;
    const facts = single ? factsOf(run) : null;
    const runs = single ? null : el("div", { class: "card wide" }, seif.table(
      ["run", "model", "rounds", "seed", "checks", "started", "folder"],
      report.runs.map((r) => [r.name, r.model, r.rounds, String(r.seed), r.checks, r.started, r.folder]), "Runs"));
    return el("div", { class: "hero" },
      el("p", null, single ? "A self-evolution run" : "Self-evolution runs, side by side"),
      el("h1", null, report.title), facts,
      report.headline.length ? el("div", { class: "cards" }, report.headline.map(card)) : null,
      runs ? el("div", { class: "cards" }, runs) : null);
  }

  function factsOf(run) {
    const named = [["Model", run.model], ["Rounds", run.rounds], ["Checks", run.checks], ["Seed", String(run.seed)],
      ["Devices", run.devices], ["Started", run.started?.replace("T", " ")], ["Commit", run.commit]];
    return el("dl", { class: "facts" }, named.filter(([, value]) => value).map(([name, value]) =>
      el("div", null, el("dt", null, name), el("dd", null, value))));
  }

  /** A number of the headline: its last round, and the rounds before. */
  function card({ label, role, values }) {
    const [, now] = values[values.length - 1];
    const before = values.map(([when, value]) => `${when}: ${format(value)}`).join(" · ");
    return el("div", { class: "card" }, el("p", { class: "label" }, label),
      el("p", { class: `figure-now ${role}` }, format(now)), el("p", { class: "was" }, before));
  }

  const makers = {
    chart: seif.chart,
    table: (block) => el("div", { class: "card wide", id: block.id }, el("h3", null, block.title),
      block.note ? el("p", { class: "note" }, block.note) : null,
      seif.table(block.columns, block.rows, block.title)),
    note: (block) => el("p", { class: `note block ${block.kind}` }, block.text),
  };

  function section({ id, link, title, lead, blocks, roles, runs }) {
    const made = blocks.map((block) => [block, makers[block.type](block)]);
    const chosen = { role: roles[0], run: runs[0] };
    const choose = (what) => {
      Object.assign(chosen, what);
      for (const [block, element] of made)
        element.hidden = ["role", "run"].some((key) => block[key] && block[key] !== chosen[key]);
    };
    choose({});
    return el("section", { id, "data-link": link, "aria-labelledby": `${id}-title` },
      el("div", { class: "head" },
        el("div", null, el("h2", { id: `${id}-title` }, title), el("p", { class: "lead" }, lead)),
        runs.length > 1 ? runSelect(title, runs, choose) : null,
        roles.length > 1 ? roleSwitch(id, title, roles, choose) : null),
      el("div", { class: "grid" }, made.map(([, element]) => element)));
  }

  function runSelect(title, runs, choose) {
    const select = el("select", null, runs.map((run) => el("option", { value: run }, run)));
    select.addEventListener("change", () => choose({ run: select.value }));
    return el("label", { class: "pick" }, el("span", { class: "unseen" }, `${title} `), "Details of ", select);
  }

  function roleSwitch(id, title, roles, choose) {
    return el("fieldset", { class: "switch" }, el("legend", { class: "unseen" }, `${title} Role:`),
      roles.map((role, i) => el("label", null,
        el("input", { type: "radio", name: `${id}-role`, value: role, checked: i === 0, onchange: () => choose({ role }) }),
        el("span", null, role[0].toUpperCase() + role.slice(1)))));
  }

  function navigation(sections) {
    const links = new Map(sections.map((each) => [each, el("a", { href: `#${each.id}` }, each.dataset.link)]));
    document.getElementById("nav").append(...links.values());
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) links.get(target).setAttribute("aria-current", "true");
        else links.get(target).removeAttribute("aria-current");
      }
    }, { rootMargin: "-20% 0px -70% 0px" });
    sections.forEach((each) => observer.observe(each));
  }

  const themeButton = document.getElementById("theme");
  themeButton.addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme(next);
    try { localStorage.setItem("seif-theme", next); } catch { /* a file:// page may have none */ }
    seif.redraw();
  });

  function saved() {
    try { return localStorage.getItem("seif-theme"); } catch { return null; }
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    themeButton.textContent = theme === "dark" ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Use the ${theme === "dark" ? "light" : "dark"} theme`);
  }
})();
