// Paints the figures in the page's own colours; again when light turns to dark, paper or narrow.
"use strict";
const when = ["(prefers-color-scheme: dark)", "print", "(max-width: 40rem)"].map((q) => matchMedia(q));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw() {
  const ink = colour("--ink"), grid = colour("--line"), narrow = when[2].matches;
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickcolor: grid };
  const below = { orientation: "h", x: 0, y: -0.28, yanchor: "top", font: { size: 11 } };
  FIGURES.forEach((figure, i) => {
    const given = figure.layout;
    const layout = {
      ...given,
      xaxis: { ...axis, ...given.xaxis },
      yaxis: { ...axis, ...given.yaxis },
      ...(given.yaxis2 && { yaxis2: { ...axis, ...given.yaxis2 } }),
      ...(narrow && { legend: below, margin: { l: 45, r: 10, t: 10, b: 80 } }),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
      autosize: true,
    };
    Plotly.react(`figure-${i}`, figure.data, layout, { displayModeBar: false, responsive: true });
  });
}

draw();
when.forEach((query) => query.addEventListener("change", draw));
addEventListener("beforeprint", () => document.querySelectorAll("details.best").forEach((d) => (d.open = true)));
