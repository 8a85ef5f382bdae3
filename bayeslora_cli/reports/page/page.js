"use strict";
// Draws the figures by plotly in the colours of the page, moves the slider of the ranks, and in a
// page that follows a training fetches what is new. Texts in the figures come escaped.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const OPTIONS = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  const RISING = ["#f3f6f4", "#cfe8d5", "#8fcfbb", "#46a7a5", "#1f7a93", "#154c79", "#0b2350"];
  const RISING_DARK = ["#20282d", "#1d4257", "#1b6480", "#2b8a95", "#53b39a", "#9bd8a0", "#f0f7b4"];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // a colour "@NAME" in a specification is one of the page
  const painted = (value, key) => {
    if (typeof value === "string") return key === "color" && value[0] === "@" ? css(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map((v) => painted(v, ""));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, k)]));
    }
    return value;
  };

  const dressed = (layout) => {
    const axis = { gridcolor: css("grid"), linecolor: css("line"), automargin: true, fixedrange: matchMedia("(pointer: coarse)").matches };
    const found = painted(layout);
    return {
      ...found,
      xaxis: { ...axis, ...found.xaxis },
      yaxis: { ...axis, ...found.yaxis },
      font: { family: "system-ui, sans-serif", size: 12, color: css("text") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 12, r: 16, t: 24, b: 12, ...found.margin },
      hoverlabel: { align: "left", bgcolor: css("card"), bordercolor: css("muted"), font: { color: css("text") } },
      dragmode: "zoom",
    };
  };

  const draw = (place) => {
    const name = place.dataset.figure;
    if (name === "ranks") return drawRanks(place);
    const spec = figures[name];
    return spec && Plotly.react(place, painted(spec.data), dressed(spec.layout), OPTIONS);
  };

  // ---- the heatmap of the ranks

  const chosen = () => {
    const { runs, forms } = figures.ranks;
    const number = Math.min(Number(document.getElementById("ranks-run").value) || 0, runs.length - 1);
    return { ...forms[runs[number].form], ...runs[number], number };
  };

  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const shown = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(1));

  const grid = (run, values, joined) =>
    run.cells.map((row) => row.map((members) => (members.length ? joined(members.map((i) => values[i])) : null)));

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const mean = (values) => sum(values) / values.length;

  const about = (run, at, isLast) => {
    const ranks = run.ranks[at];
    const whole = sum(ranks) || 1;
    return run.cells.map((row) =>
      row.map((members) =>
        members
          .map((i) => {
            const lines = [
              `<b>${escaped(run.matrices[i])}</b>`,
              `rank ${shown(ranks[i])} of ${run.initial[i]}, ${((100 * ranks[i]) / whole).toFixed(1)}% of the budget`,
            ];
            if (run.bits) lines.push(`mean width ${run.bits[at][i]} bits`);
            if (run.scores) {
              const { kept, pruned } = run.scores[i];
              lines.push(`scores at the end: kept ${kept.join(", ") || "none"}`);
              if (pruned.length) lines.push(`pruned ${pruned.join(", ")}`);
            }
            return lines.join("<br>");
          })
          .join("<br>"),
      ),
    );
  };

  // room: about the width of a cell, in pixels
  const heat = (run, values, top, at, room, axes, unit, share) => ({
    type: "heatmap",
    x: run.columns,
    y: run.kinds,
    z: values,
    zmin: 0,
    zmax: top || 1,
    text: about(run, at),
    hovertemplate: "%{text}<extra></extra>",
    texttemplate: room < 20 ? "" : "%{z:.3~g}",
    textfont: { size: 11 },
    xgap: room < 10 ? 1 : 2,
    ygap: 2,
    colorscale: (dark.matches ? RISING_DARK : RISING).map((c, i, all) => [i / (all.length - 1), c]),
    colorbar: { title: { text: unit, side: "right" }, thickness: 10, outlinewidth: 0, dtick: Math.ceil((top || 1) / 8), ...share },
    ...axes,
  });

  const drawRanks = (place) => {
    const spec = figures.ranks;
    if (!spec) return undefined;
    const run = chosen();
    const slider = document.getElementById("ranks-step");
    slider.max = run.steps.length - 1;
    slider.parentElement.hidden = run.steps.length < 2;
    const at = Math.min(Number(slider.value), run.steps.length - 1);
    const two = Boolean(run.bits);
    const stacked = two && narrow.matches;
    const height = stacked ? 2 * spec.height : spec.height;
    place.style.height = `${height}px`;
    const category = { type: "category", showgrid: false, title: { text: "layer" } };
    const rows = { ...category, title: { text: "" }, autorange: "reversed" };
    const top = Math.max(...grid(run, run.initial, sum).flat().filter((v) => v !== null));
    const wide = two && !stacked;
    const side = wide ? { x: 0.44 } : stacked ? { y: 0.79, len: 0.42 } : {};
    const room = (place.clientWidth - (wide ? 260 : 130)) / run.columns.length / (wide ? 2 : 1);
    const data = [heat(run, grid(run, run.ranks[at], sum), top, at, room, {}, "rank", side)];
    const layout = {
      height,
      xaxis: { ...category, ...(wide ? { domain: [0, 0.43] } : {}), anchor: "y" },
      yaxis: { ...rows, ...(stacked ? { domain: [0.58, 1] } : {}) },
    };
    if (two) {
      const widths = run.bits.flat().filter((v) => v < 32);
      data.push(heat(run, grid(run, run.bits[at], mean), Math.max(8, ...widths), at, room,
        { xaxis: "x2", yaxis: "y2" }, "bits", stacked ? { y: 0.21, len: 0.42 } : {}));
      const plain = { automargin: true, linecolor: css("line") };
      layout.xaxis2 = { ...category, ...plain, anchor: "y2", ...(wide ? { domain: [0.57, 1] } : {}) };
      layout.yaxis2 = { ...rows, ...plain, anchor: "x2", ...(stacked ? { domain: [0, 0.42] } : {}) };
    }
    sayRanks(run, at, slider);
    return Plotly.react(place, data, dressed(layout), OPTIONS);
  };

  const sayRanks = (run, at, slider) => {
    const kept = sum(run.ranks[at]);
    const initial = sum(run.initial);
    const until = at + 1 < run.steps.length ? run.steps[at + 1] - 1 : run.last;
    const from = run.steps[at];
    const when = until > from ? `Steps ${from} to ${until}` : `Step ${from}`;
    const text = `${when}: ${shown(kept)} of ${initial} triplets (${((100 * kept) / initial).toFixed(0)}%)`;
    slider.setAttribute("aria-valuetext", text);
    document.getElementById("ranks-said").textContent = text;
    if (tabled !== run.number) tabulate(run);
    tabled = run.number;
    document.querySelectorAll("#ranks-table tbody tr").forEach((row, i) => {
      row.cells[4].textContent = shown(run.ranks[at][i]);
    });
  };

  let tabled = null; // the run whose table stands below the heatmap

  const cell = (tag, text, more) => Object.assign(document.createElement(tag), { textContent: text, ...more });

  const tabulate = (run) => {
    const place = document.getElementById("ranks-table");
    const final = run.ranks[run.ranks.length - 1];
    const whole = sum(final) || 1;
    const lists = (i) => [run.scores[i].kept, run.scores[i].pruned].map((found) => found.join(", ") || "–");
    const rows = run.matrices.map((name, i) => {
      const first = run.ranks.findIndex((ranks) => ranks[i] < run.initial[i]);
      return [
        name, ...run.places[i], run.initial[i], shown(final[i]), final[i],
        `${((100 * final[i]) / whole).toFixed(1)}%`, first < 0 ? "–" : run.steps[first],
        ...(run.scores ? lists(i) : []), ...(run.bits ? [run.bits[run.bits.length - 1][i]] : []),
      ];
    });
    const heads = figures.ranks.heads.filter((_, i) => i < 8 || (i < 10 ? run.scores : run.bits));
    const line = (cells) => {
      const row = document.createElement("tr");
      row.append(...cells);
      return row;
    };
    const box = place.querySelector(".scroll");
    box.setAttribute("aria-label", `Ranks of ${run.name}`);
    box.querySelector("caption span").textContent = `Ranks of ${run.name}`;
    box.querySelector("thead").replaceChildren(line(heads.map((head) => cell("th", head, { scope: "col" }))));
    box.querySelector("tbody").replaceChildren(...rows.map(([name, ...others]) =>
      line([cell("th", name, { scope: "row" }), ...others.map((text) => cell("td", text))])));
  };

  document.addEventListener("input", (event) => {
    if (event.target.id === "ranks-step") drawRanks(document.getElementById("plot-ranks"));
  });
  document.addEventListener("change", (event) => {
    if (event.target.id !== "ranks-run") return;
    const slider = document.getElementById("ranks-step");
    slider.max = slider.value = chosen().steps.length - 1;
    drawRanks(document.getElementById("plot-ranks"));
  });

  // ---- a page that follows a training

  const main = document.getElementById("main");
  const EVERY = 2000; // milliseconds
  let tag = "";
  const before = {}; // the parts as they were last put into the page

  // Puts a part's HTML in place of the old one. What the reader has opened, chosen or moved stays,
  // and figures keep their place, so that only their data change.
  const put = (part, html) => {
    const focus = document.activeElement && document.activeElement.id;
    const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.id));
    const values = [...part.querySelectorAll("input, select")].map((c) => [c.id, c.value, c.max === c.value]);
    const plots = new Map([...part.querySelectorAll(".plot.js-plotly-plot")].map((p) => [p.id, p]));
    const scrolled = [...part.querySelectorAll(".scroll")].map((s) => [s.scrollLeft, s.scrollTop]);
    part.innerHTML = html; // the server has escaped every text, and no script in it would run
    for (const d of part.querySelectorAll("details")) d.open = d.open || open.has(d.id);
    for (const p of part.querySelectorAll(".plot")) {
      const old = plots.get(p.id);
      if (!old) continue;
      old.setAttribute("aria-label", p.getAttribute("aria-label"));
      p.replaceWith(old);
    }
    for (const [id, value, atEnd] of values) {
      const control = document.getElementById(id);
      if (control) control.value = atEnd ? control.max || value : value;
    }
    part.querySelectorAll(".scroll").forEach((s, i) => scrolled[i] && s.scrollTo(...scrolled[i]));
    const focused = focus && document.getElementById(focus);
    if (focused && focused !== document.activeElement) focused.focus({ preventScroll: true });
  };

  const update = (found) => {
    document.title = `${found.heading} · bayeslora`;
    document.getElementById("heading").textContent = found.heading;
    document.getElementById("line").innerHTML = found.line;
    const { contents, ...sections } = found.sections;
    const order = Object.keys(sections);
    document.querySelectorAll("main > section").forEach((s) => order.includes(s.id) || s.remove());
    let last = null;
    for (const id of order) {
      let part = document.getElementById(id);
      if (!part) {
        part = document.createElement("section");
        part.id = id;
        part.setAttribute("aria-labelledby", `${id}-title`);
        if (last) last.after(part);
        else main.prepend(part);
      }
      if (before[id] !== sections[id]) put(part, sections[id]);
      before[id] = sections[id];
      last = part;
    }
    if (before.contents !== contents) document.getElementById("contents").innerHTML = contents;
    before.contents = contents;
    for (const name of Object.keys(figures)) delete figures[name];
    Object.assign(figures, found.figures);
    tabled = null;
    drawn().forEach(draw);
    watch();
  };

  const follow = async () => {
    try {
      if (!document.hidden) {
        const answer = await fetch("/parts", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          update(await answer.json());
        }
        main.dataset.live = "connected";
      }
    } catch (error) {
      if (main.dataset.live !== "lost") {
        const said = document.querySelector("#line .live");
        if (said) said.textContent = "the server has ended; this is what it served last";
      }
      main.dataset.live = "lost";
      tag = "";
    }
    setTimeout(follow, EVERY);
  };

  // ---- when what is drawn

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
    // where plotly measures texts: nothing for screen readers
    const tester = document.getElementById("js-plotly-tester");
    if (tester) tester.setAttribute("aria-hidden", "true");
  }, { rootMargin: "400px" });
  const drawn = () => [...document.querySelectorAll(".plot.js-plotly-plot")];
  const watch = () => document.querySelectorAll(".plot:not(.js-plotly-plot)").forEach((p) => seen.observe(p));
  watch();
  for (const query of [dark, narrow]) query.addEventListener("change", () => drawn().forEach(draw));
  addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));

  if (main.dataset.live !== undefined) setTimeout(follow, EVERY);

  // links into a folded part unfold it
  const unfold = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
})();
