// The live page: asks Locust once a second and draws what it says. All text goes through textContent.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 58, RIGHT = 14, TOP = 34, BOTTOM = 40, WIDTH = 640, HEIGHT = 230;
  const RATE = [{ name: "tokens per second", style: "s0", column: 1 }];
  const ITL = [{ name: "ITL p50", style: "s0", column: 2 }, { name: "ITL p99", style: "s1", column: 3 }];
  const points = [];
  let last = null, generation = -1, adapters = "";

  const number = (v) => v === null || v === undefined ? "–"
    : Math.abs(v) >= 100 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(3));

  // charts
  function element(name, attributes, words) {
    const out = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) out.setAttribute(key, value);
    if (words !== undefined) out.textContent = words;
    return out;
  }

  function ticks(high, count) {
    const raw = high / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((v) => v >= raw * .999);
    return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => +(i * step).toPrecision(8));
  }

  function draw(svg, series, label) {
    const end = Math.max(last.now, 10);
    const high = 1.15 * Math.max(1, ...series.flatMap((s) => points.map((p) => p[s.column] ?? 0)));
    const x = (t) => LEFT + t / end * (WIDTH - LEFT - RIGHT), floor = HEIGHT - BOTTOM;
    const y = (v) => floor - v / high * (floor - TOP);
    const parts = [];
    last.phases.forEach((p, i) => {
      const a = x(p.start), b = x(p.end ?? last.now);
      parts.push(element("rect", { class: `region arm${i % 2}`, x: a, y: TOP, width: Math.max(b - a, 0), height: floor - TOP }));
      if (b - a > 7 * p.arm.length) parts.push(element("text", { x: a + 3, y: TOP + 12, class: "quiet" }, p.arm));
    });
    for (const v of ticks(high, 5)) {
      parts.push(element("path", { class: "grid", d: `M${LEFT} ${y(v)}H${WIDTH - RIGHT}` }));
      parts.push(element("text", { x: LEFT - 6, y: y(v) + 4, class: "end" }, number(v)));
    }
    for (const v of ticks(end, 8)) {
      parts.push(element("path", { class: "axis", d: `M${x(v)} ${floor}v4` }));
      parts.push(element("text", { x: x(v), y: floor + 16, class: "mid" }, number(v)));
    }
    parts.push(element("path", { class: "axis", d: `M${LEFT} ${floor}H${WIDTH - RIGHT}` }));
    parts.push(element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, class: "mid" }, "seconds since the start"));
    parts.push(element("text", { x: 4, y: 12 }, label));
    for (const s of last.swaps) parts.push(element("path", { class: `mark ${s.outcome}`, d: `M${x(s.at)} ${TOP}V${floor}` }));
    series.forEach((s, i) => {
      let pen = "M";
      const d = points.map((p) => {
        if (p[s.column] === null) { pen = "M"; return ""; }
        const step = `${pen}${x(p[0]).toFixed(1)} ${y(p[s.column]).toFixed(1)}${pen === "M" ? "h0" : ""}`;
        pen = "L";
        return step;
      }).join("");
      parts.push(element("path", { class: `line ${s.style}`, d }));
      parts.push(element("path", { class: `line ${s.style}`, d: `M${LEFT + 150 * i} 24h26` }));
      parts.push(element("text", { x: LEFT + 31 + 150 * i, y: 28 }, s.name));
    });
    svg.replaceChildren(...parts);
    svg.onpointermove = (e) => {
      const box = svg.getBoundingClientRect(), at = ((e.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * end;
      const near = points.reduce((a, p) => !a || Math.abs(p[0] - at) < Math.abs(a[0] - at) ? p : a, null);
      if (near) byId(svg.id + "-words").textContent = words(near, series, label);
    };
    svg.onpointerleave = () => { byId(svg.id + "-words").textContent = newest(series, label); };
  }

  const words = (p, series, label) => `${p[0].toFixed(0)} s: ` + series.map((s) => `${s.name} ${number(p[s.column])}`).join(", ") +
    (label === "ms" ? " ms" : "");
  const newest = (series, label) => points.length ? "Now at " + words(points[points.length - 1], series, label) : "";

  // words
  const STATES = { preparing: "A run is being prepared.", judging: "The run has ended; rolling back and judging.",
    none: "No run yet: start one in Locust.", ended: "The run has ended." };
  const RED = ["torn", "stale", "foreign", "not ok"];

  function tiles() {
    const c = last.counts, s = last.streams, p = points[points.length - 1] ?? [];
    const judged = c.judged ? (n) => number(n ?? 0) : () => "–";
    const odd = s.fail - (c.rejected ?? 0);
    return [
      ["complete", number(s.ok), "streams that ended with everything they promised"],
      ["torn", judged(c.torn), "tokens of more than one version"],
      ["stale", judged(c.stale), "served by a version superseded before they were sent"],
      ["foreign", judged(c.foreign), "a token of another adapter"],
      ["rejected", number(c.rejected ?? 0), "an HTTP status other than 200"],
      ["not ok", number(odd), "cut, truncated, in-band error, ..."],
      ["open", number(s.open), "streams in flight"],
      ["tokens/s", number(p[1])],
      ["ITL p50, ms", number(p[2])],
      ["ITL p99, ms", number(p[3])],
      ["TTFT p50, ms", number(p[4])],
      ["client's lag p99, ms", number(last.health.loop_lag_p99_ms)],
    ];
  }

  function showTiles() {
    byId("tiles").replaceChildren(...tiles().map(([name, value, title]) => {
      const box = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      [dt.textContent, dd.textContent] = [name, value];
      if (title) box.title = title;
      if (RED.includes(name) && value !== "0" && value !== "–") dd.className = "bad";
      box.append(dt, dd);
      return box;
    }));
  }

  function showState() {
    const box = byId("now"), v = last.verdict;
    box.className = "verdict " + (v ? v.status.toLowerCase() : "");
    byId("title").textContent = last.title || "Hotfix, live";
    const running = () => `Running: phase ${last.phase || "ramp"}, ${last.now.toFixed(0)} s, ${number(last.streams.sent)} streams, ${number(last.tokens)} tokens.`;
    byId("state").textContent = v ? v.headline : last.state === "running" ? running() : STATES[last.state];
    byId("report").hidden = !(v && v.report);
    if (v && v.report) Object.assign(byId("report"), { href: v.report, target: "_blank" });
  }

  function showSwaps() {
    if (!last.swaps.length) return;
    byId("swaps").replaceChildren(...last.swaps.slice(0, 50).map((s) => {
      const row = document.createElement("tr");
      const sign = { ok: "✓ ok", fail: "✗ fail", info: "? info" }[s.outcome] ?? s.outcome;
      const cells = [s.n, number(s.at), s.arm, s.adapter, s.version, sign, number(s.ack_ms), number(s.effect_ms), s.reason];
      cells.forEach((value, i) => {
        const cell = document.createElement("td");
        cell.textContent = value;
        if ([1, 6, 7].includes(i)) cell.className = "num";
        if (i === 5) { cell.className = "badge " + s.outcome; }
        row.append(cell);
      });
      return row;
    }));
  }

  function showForm() {
    const going = last.state === "running" && Object.keys(last.adapters).length > 0;
    for (const id of ["adapter", "version", "swap"]) byId(id).disabled = !going;
    const told = JSON.stringify(last.adapters);
    if (told !== adapters) {
      adapters = told;
      byId("adapter").replaceChildren(...Object.keys(last.adapters).map((name) => new Option(name, name)));
      showVersions();
    }
  }

  function showVersions() {
    const found = last.adapters[byId("adapter").value] ?? [];
    byId("version").replaceChildren(new Option("the next one", ""), ...found.map((v) => new Option(v, v)));
  }

  // asking
  async function ask() {
    const since = points.length && generation >= 0 ? points[points.length - 1][0] : -1;
    try {
      const answer = await fetch(`hotfix/state.json?since=${since}&generation=${generation}&run=${encodeURIComponent(last?.run ?? "")}`,
        { headers: { Accept: "application/json" }, redirect: "error", cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      show(await answer.json());
    } catch {
      byId("state").textContent = "Locust does not answer.";
      for (const id of ["adapter", "version", "swap"]) byId(id).disabled = true;
    }
  }

  function show(news) {
    if (!last || news.run !== last.run || news.generation !== generation) points.length = 0;
    last = news;
    generation = news.generation;
    points.push(...news.points);
    showState();
    if (last.state === "none") return;
    showTiles();
    draw(byId("rate"), RATE, "tokens/s");
    draw(byId("itl"), ITL, "ms");
    if (!byId("rate").matches(":hover")) byId("rate-words").textContent = newest(RATE, "tokens/s");
    if (!byId("itl").matches(":hover")) byId("itl-words").textContent = newest(ITL, "ms");
    showSwaps();
    showForm();
  }

  async function hotfix(event) {
    event.preventDefault();
    byId("swap").disabled = true;
    byId("answer").textContent = "…";
    const body = JSON.stringify({ adapter: byId("adapter").value, version: byId("version").value });
    try {
      const answer = await fetch("hotfix/swap", { method: "POST", body, redirect: "error",
        headers: { "Content-Type": "application/json", "X-Hotfix-Token": document.body.dataset.token } });
      const told = await answer.json();
      byId("answer").textContent = told.message;
    } catch {
      byId("answer").textContent = "no answer from Locust";
    }
    byId("swap").disabled = false;
    ask();
  }

  byId("form").addEventListener("submit", hotfix);
  byId("adapter").addEventListener("change", showVersions);
  if (window.parent !== window) document.body.classList.add("framed");
  (async () => {
    for (;;) {
      if (!document.hidden) await ask();
      await new Promise((done) => setTimeout(done, 1000));
    }
  })();
})();
