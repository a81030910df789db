// Values under the pointer. Without this the page is complete: numbers are in its tables.
"use strict";
(() => {
  const numbers = JSON.parse(document.getElementById("numbers").textContent);
  const tip = document.getElementById("tip");
  const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
  const written = (y) => (Math.abs(y) < 1e-3 && y !== 0 ? y.toExponential(2) : digits.format(y));

  const element = (name, text) => {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  };

  const show = (event, title, pairs) => {
    const lines = pairs.map(([name, value]) => {
      const line = document.createElement("div");
      line.append(element("span", name), element("span", value));
      return line;
    });
    tip.replaceChildren(element("b", title), ...lines);
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
    const top = Math.min(event.clientY + 14, innerHeight - height - 6);
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
    tip.style.visibility = "visible";
  };

  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return x - xs[low] <= xs[high] - x ? low : high;
  };

  // Charts over steps share their cursor, and the heat maps with them.
  const timed = [];
  const follow = (x) => {
    for (const { cursor, low, high } of timed) {
      const place = (x - low) / (high - low);
      cursor.style.display = place >= 0 && place <= 1 ? "block" : "none";
      cursor.style.left = `${100 * place}%`;
    }
  };
  const leave = () => {
    tip.style.visibility = "hidden";
    for (const { cursor } of timed) cursor.style.display = "none";
    for (const lit of document.querySelectorAll(".lit")) lit.remove();
  };

  const watch = (area, move) => {
    area.addEventListener("pointermove", (event) => {
      const frame = area.getBoundingClientRect();
      move(event, (event.clientX - frame.left) / frame.width, event.clientY - frame.top);
    });
    area.addEventListener("pointerleave", leave);
  };

  for (const plot of document.querySelectorAll("[data-chart]")) {
    const chart = numbers.charts[plot.dataset.chart];
    const area = plot.querySelector(".area");
    const own = { cursor: area.querySelector(".cursor"), low: chart.low, high: chart.high };
    if (chart.x === "step") timed.push(own);
    const move = (event, along) => {
      const x = chart.low + along * (chart.high - chart.low);
      const told = chart.curves.filter((curve) => curve.xs.length).map((curve) => {
        const i = nearest(curve.xs, x);
        return [curve.xs[i], curve.name, curve.ys[i] === null ? "not finite" : written(curve.ys[i])];
      });
      if (!told.length) return;
      if (chart.x === "step") follow(told[0][0]);
      else {
        own.cursor.style.display = "block";
        own.cursor.style.left = `${(100 * (told[0][0] - chart.low)) / (chart.high - chart.low)}%`;
      }
      const alone = new Set(told.map(([, name]) => name)).size < 2;
      show(event, `${chart.x} ${digits.format(told[0][0])}`,
        told.map(([, name, y]) => [alone ? plot.getAttribute("aria-label") : name, y]));
    };
    watch(area, move);
    area.addEventListener("pointerleave", () => { own.cursor.style.display = "none"; });
    byKey(plot, area, move);
  }

  for (const heat of document.querySelectorAll("[data-heat]")) {
    const map = numbers.heats[heat.dataset.heat];
    const area = heat.querySelector(".area");
    timed.push({ cursor: area.querySelector(".cursor"), low: map.low, high: map.high });
    const move = (event, along, down) => {
      const row = map.rows.find((r) => down >= r.top && down < r.top + r.height);
      for (const lit of area.querySelectorAll(".lit")) lit.remove();
      if (!row) return;
      const step = Math.min(map.high - 1, Math.floor(map.low + along * (map.high - map.low)));
      let i = row.steps.length - 1;
      while (i > 0 && row.steps[i] > step) i -= 1;
      const lit = document.createElement("div");
      lit.className = "lit";
      lit.style.top = `${row.top - 1}px`;
      lit.style.height = `${row.height + 1}px`;
      area.append(lit);
      follow(step);
      const pairs = [["step", digits.format(step)], ["rank", String(row.ranks[i])]];
      if (row.shape) pairs.push(["weight", row.shape]);
      show(event, row.name, pairs);
    };
    watch(area, move);
    byKey(heat, area, move);
  }

  for (const tiles of document.querySelectorAll("[data-spectra]")) {
    const told = numbers.spectra[tiles.dataset.spectra];
    tiles.querySelectorAll(".tile").forEach((tile, i) => {
      const { name, sigma } = told.rows[i];
      const move = (event, along) => {
        const place = Math.max(1, Math.min(sigma.length, Math.round(0.5 + along * told.widest)));
        show(event, name, [
          ["step", digits.format(told.steps[told.steps.length - 1])],
          ["direction", `${place} of ${sigma.length}`],
          ["singular value", written(sigma[place - 1])],
        ]);
      };
      const area = tile.querySelector(".area");
      watch(area, move);
      byKey(tile, area, move);
    });
  }

  // The arrow keys move what the pointer moves.
  function byKey(target, area, move) {
    let along = 0.5, down = 0.02;
    target.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!by) return;
      event.preventDefault();
      const frame = area.getBoundingClientRect();
      along = Math.max(0, Math.min(1, along + by[0]));
      down = Math.max(0, Math.min(1, down + (7 * by[1]) / frame.height));
      const place = { clientX: frame.left + along * frame.width, clientY: frame.top + down * frame.height };
      move(place, along, down * frame.height);
    });
    target.addEventListener("blur", leave);
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
