// What is wrong with the page that is shown, as lists of strings. The file is one expression, an object of functions.
({
  // Elements that are used or spoken and have no name: of a label, an attribute or their own text.
  names() {
    const told = (ids) => ids.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" ");
    const own = (one) => one.matches("input, select, textarea, progress") ? one.title : one.textContent || one.title;
    const labels = (one) => one.labels?.length ? [...one.labels].map((label) => label.textContent).join(" ") : null;
    const nameOf = (one) => one.hasAttribute("aria-labelledby") ? told(one.getAttribute("aria-labelledby"))
      : one.getAttribute("aria-label") ?? labels(one) ?? own(one);
    const kinds = "a[href], button, input, select, textarea, summary, progress, [role=tab], [role=option], [role=listbox], "
      + "[role=slider], [role=img], [role=tablist], [role=tabpanel], dialog[open], nav, section[aria-labelledby]";
    return this.shown(kinds).filter((one) => !nameOf(one).trim()).map(this.told);
  },

  // One h1, no level of headings left out, one main, no id twice, no reference to nothing, roles inside of their parents.
  structure() {
    const wrong = [], levels = this.shown("h1, h2, h3, h4").map((one) => Number(one.tagName[1]));
    const firsts = levels.filter((level) => level === 1).length;
    if (firsts !== 1) wrong.push(`${firsts} h1`);
    levels.forEach((level, place) => { if (place && level > levels[place - 1] + 1) wrong.push(`h${levels[place - 1]} then h${level}`); });
    if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");
    if (document.documentElement.lang !== "en") wrong.push("no language");
    const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
    wrong.push(...ids.filter((id, place) => ids.indexOf(id) !== place).map((id) => `two ids ${id}`));
    for (const one of this.shown("[aria-labelledby], [aria-controls], label[for]")) {
      const referred = one.getAttribute("aria-labelledby") ?? one.getAttribute("aria-controls") ?? one.htmlFor;
      for (const id of referred.split(/\s+/)) if (!document.getElementById(id)) wrong.push(`no ${id} for ${this.told(one)}`);
    }
    const within = { "[role=tab]": "[role=tablist]", "[role=option]": "[role=listbox]", li: "ul, ol", td: "tr", dd: "dl" };
    for (const [one, parent] of Object.entries(within)) {
      wrong.push(...this.shown(one).filter((each) => !each.closest(parent)).map((each) => `${this.told(each)} outside of ${parent}`));
    }
    wrong.push(...this.shown("ul > :not(li), ol > :not(li)").map((one) => `${this.told(one)} in a list`));
    wrong.push(...this.shown("table").filter((one) => !one.querySelector("th")).map((one) => `${this.told(one)} without th`));
    return wrong;
  },

  // Text whose contrast with what is behind it is below 4.5 to 1, or 3 to 1 where it is large. A canvas turns every way of
  // writing a colour into bytes; half transparent layers lie on those behind them.
  contrast() {
    const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const bytes = (colour) => {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
      return [red, green, blue, alpha / 255];
    };
    const ancestors = (one) => one ? [...ancestors(one.parentElement), one] : [];
    const over = ([red, green, blue, alpha], under) => [red, green, blue].map((each, i) => each * alpha + under[i] * (1 - alpha));
    const linear = (each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    const light = (colour) => colour.reduce((sum, each, i) => sum + linear(each / 255) * [0.2126, 0.7152, 0.0722][i], 0);
    const paper = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    const ratioOf = (one) => {
      const all = ancestors(one).map((each) => getComputedStyle(each)), style = all.at(-1);
      const back = all.reduce((under, each) => over(bytes(each.backgroundColor), under), paper);
      const [red, green, blue, alpha] = bytes(style.color);
      const ink = over([red, green, blue, all.reduce((part, each) => part * Number(each.opacity), alpha)], back);
      const [high, low] = [light(ink), light(back)].sort((one, other) => other - one);
      const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      return (high + 0.05) / (low + 0.05) / (large ? 3 / 4.5 : 1);
    };
    const wrong = new Map(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = texts.nextNode());) {
      const one = node.parentElement, box = one.getBoundingClientRect();
      if (!node.data.trim() || box.width <= 1 || one.closest("[disabled], svg") || !one.checkVisibility({ visibilityProperty: true })) continue;
      const ratio = ratioOf(one);
      if (ratio < 4.5) wrong.set(`${one.tagName}.${one.className}`, `${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
    }
    return [...wrong].map(String);
  },

  // What a finger misses: WCAG 2.5.8 asks for targets of 24 by 24 pixels. The label of a field is part of it.
  targets() {
    return this.shown("main button, main select, main input, header button, header a, header select, header input")
      .map((one) => one.closest("label") ?? one).map((one) => [one, one.getBoundingClientRect()])
      .filter(([, { width, height }]) => width && (width < 24 || height < 24))
      .map(([one, { width, height }]) => `${this.told(one)} ${width} x ${height}`);
  },

  // Text below 11 pixels.
  tiny() {
    const own = (one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    return this.shown("main *, header *").filter((one) => !one.closest("svg") && own(one) && parseFloat(getComputedStyle(one).fontSize) < 11).map(this.told);
  },

  // What moves, or scrolls smoothly.
  moving() {
    const lasts = (text) => text.split(",").some((each) => parseFloat(each) > 0.01);
    return [...document.querySelectorAll("*")].filter((one) => {
      const { transitionDuration, animationDuration, scrollBehavior } = getComputedStyle(one);
      return lasts(transitionDuration) || lasts(animationDuration) || scrollBehavior === "smooth";
    }).map(this.told);
  },

  // How far the page scrolls sideways.
  sideways: () => document.documentElement.scrollWidth - document.documentElement.clientWidth,

  // Remember how each element looks without the focus, and give it a number.
  beforeTab() {
    document.activeElement?.blur();
    getSelection().removeAllRanges();
    scrollTo(0, 0);
    [...document.querySelectorAll("*")].forEach((one, number) => Object.assign(one, { number, calm: this.look(one) }));
  },

  // The element with the focus, once the page has scrolled to it; null: none has it.
  async afterTab() {
    await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
    const one = document.activeElement, box = one.getBoundingClientRect();
    if (one === document.body) return null;
    const inside = box.bottom > 0 && box.top < innerHeight && box.width > 0;
    return { number: one.number, what: this.told(one), shows: this.look(one) !== one.calm, inside };
  },

  // What Tab should reach and has not. Of tabs, options and tokens one is in the order of Tab, and arrows go on from it.
  missed(numbers) {
    return this.shown("a[href], button, input, select, textarea, summary")
      .filter((one) => !one.disabled && one.tabIndex >= 0 && !numbers.includes(one.number)).map(this.told);
  },

  // Whether an element differs from the text around it by more than colours.
  standsOut(one) {
    const { textDecorationLine, outlineStyle, borderBottomStyle, fontWeight, forcedColorAdjust } = getComputedStyle(one);
    return [textDecorationLine, outlineStyle, borderBottomStyle].some((each) => each !== "none") || Number(fontWeight) >= 600 || forcedColorAdjust === "none";
  },

  shown: (kinds) => [...document.querySelectorAll(kinds)].filter((one) => one.checkVisibility({ visibilityProperty: true }) && one.getClientRects().length),
  told: (one) => one.outerHTML.slice(0, 120),
  look(one) {
    const { outline, boxShadow, borderColor, backgroundColor, textDecoration } = getComputedStyle(one);
    return [outline, boxShadow, borderColor, backgroundColor, textDecoration].join();
  },
})
