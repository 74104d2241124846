/* What the pages do beyond showing text: marked answers, figures that open large, the claims page's filters, names for
   screen readers.
   No library, no network; without JavaScript the pages read the same. */
"use strict";

(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // --- Names and roles that the theme leaves out or gets wrong
  const nameThings = () => {
    for (const summary of document.querySelectorAll(".bd-docs-nav details > summary")) {
      const link = summary.closest("li")?.querySelector(":scope > a");
      if (link) summary.setAttribute("aria-label", `Pages of: ${link.textContent.trim()}`);
    }
    // the words in it name a folded block better than "Toggle hidden content"
    for (const summary of document.querySelectorAll("details.hide > summary")) summary.removeAttribute("aria-label");
    // what stands in this list has a role of its own, which a list must not hold
    for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
  };

  // --- Answers to a question: an opened one is marked as right or wrong, as its first word says
  const markAnswers = () => {
    for (const answer of document.querySelectorAll("section > details:not([class])")) {
      const said = answer.querySelector("p")?.textContent.match(/^(Yes|No)\b/)?.[1];
      if (said) answer.dataset.answer = { Yes: "right", No: "wrong" }[said];
    }
  };

  // --- Figures: a click on one, or its button, shows it as large as the window; Esc or another click closes it
  const zoomFigures = () => {
    const frame = make("div");
    const words = make("p");
    const close = make("button", { type: "button", textContent: "Close", className: "btn btn-sm btn-secondary" });
    const box = make("dialog", { className: "zoomed" }, frame, words, close);
    box.setAttribute("aria-label", "Figure, enlarged");
    box.addEventListener("click", (event) => {
      // on a phone the figure first fits the window; a tap on it shows it at its own size, to be scrolled
      if (event.target.matches("img")) event.target.classList.toggle("whole");
      else box.close();
    });
    document.body.append(box);
    const open = (image) => {
      frame.replaceChildren(make("img", { src: image.currentSrc || image.src, alt: image.alt }));
      const caption = image.closest("figure:has(figcaption)")?.querySelector("figcaption");
      words.textContent = caption ? caption.textContent.replace("#", "").trim() : image.alt;
      box.showModal();
    };
    for (const image of document.querySelectorAll("article img")) {
      const link = image.closest("a");
      if (link && !link.matches(".image-reference")) continue; // a picture that leads somewhere else
      const caption = image.closest("figure:has(figcaption)")?.querySelector("figcaption");
      let place = image.closest("figure.slider div"); // of its pictures one is shown: they share a button
      if (!place) {
        place = make("span");
        (link ?? image).replaceWith(place);
        place.append(image);
      }
      image.addEventListener("click", () => open(image));
      if (place.matches(".zoomable")) continue;
      place.classList.add("zoomable");
      const name = caption?.querySelector("b")?.textContent ?? `the picture: ${image.alt.slice(0, 60)}`;
      const button = make("button", { type: "button", className: "zoom", textContent: "\u2922", title: "Enlarge" });
      button.setAttribute("aria-label", `Enlarge ${name}`);
      button.addEventListener("click", () => open(place.querySelector("img:not([hidden])")));
      place.append(button);
    }
  };

  // --- Blocks that open: those that a link or the paper wants to show
  const openTarget = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const block = target && target.closest("details");
    if (!block) return;
    block.hidden = false;
    block.open = true;
    block.scrollIntoView();
  };
  const openForPaper = () => {
    for (const block of document.querySelectorAll("article details:not([open])")) {
      block.open = true;
      window.addEventListener("afterprint", () => (block.open = false), { once: true });
    }
  };

  // --- The claims page
  const FILTERS = [
    ["document", "Document"],
    ["notebook", "Notebook"],
    ["verdict", "Verdict"],
    ["agreement", "Quick and source runs"],
  ];
  const values = (claim, kind) =>
    [...claim.classList].filter((name) => name.startsWith(`${kind}-`)).map((name) => name.slice(kind.length + 1));
  const label = (kind, value) => {
    const words = value.replaceAll("-", " ");
    return kind === "document" && words !== "this lab" ? words[0].toUpperCase() + words.slice(1) : words;
  };

  const filterClaims = () => {
    const place = document.querySelector(".claims-tools");
    const claims = [...document.querySelectorAll("details.claim")];
    if (!place || !claims.length) return;
    const homes = new Map(claims.map((claim) => [claim, claim.parentElement]));
    const sections = [...new Set(homes.values())];
    const texts = new Map(claims.map((claim) => [claim, claim.textContent.toLowerCase()]));
    const sorted = make("div");
    place.after(sorted);

    const field = (name, control) => {
      control.setAttribute("aria-label", name);
      return make("label", {}, `${name} `, control);
    };
    const choose = (options) => make("select", { className: "form-select" }, ...options.map((o) => make("option", o)));
    const selects = new Map();
    for (const [kind, name] of FILTERS) {
      const known = [...new Set(claims.flatMap((claim) => values(claim, kind)))].sort();
      const options = [{ value: "", textContent: "all" }, ...known.map((value) => ({ value, textContent: label(kind, value) }))];
      selects.set(kind, choose(options));
      place.append(field(name, selects.get(kind)));
    }
    const order = choose(
      ["as on the page", "notebook", "document", "verdict"].map((value) => ({ value, textContent: value })),
    );
    const search = make("input", { type: "search", className: "form-control", placeholder: "words" });
    const told = make("output", {});
    place.append(field("Sort by", order), field("Search claims", search), told);

    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const claim of claims) {
        const fits =
          [...selects].every(([kind, { value }]) => !value || values(claim, kind).includes(value)) &&
          words.every((word) => texts.get(claim).includes(word));
        claim.hidden = !fits;
        count += fits;
      }
      if (order.value === "as on the page") {
        for (const claim of claims) homes.get(claim).append(claim);
      } else {
        const key = (claim) => values(claim, order.value).join();
        sorted.append(...[...claims].sort((a, b) => key(a).localeCompare(key(b))));
      }
      for (const section of sections) section.hidden = !section.querySelector("details.claim:not([hidden])");
      told.textContent = `${count} of ${claims.length} claims`;
    };
    for (const control of [...selects.values(), order]) control.addEventListener("change", apply);
    search.addEventListener("input", apply);
    apply();
  };

  document.addEventListener("DOMContentLoaded", () => {
    nameThings();
    markAnswers();
    zoomFigures();
    filterClaims();
    openTarget();
    window.addEventListener("hashchange", openTarget);
    window.addEventListener("beforeprint", openForPaper);
  });
})();
