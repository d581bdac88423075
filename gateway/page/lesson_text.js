// The text of the lessons and of the glossary. The gateway sends it as a tree, of which only these tags become elements.

import { ask, button, byId, el, say } from "./dom.js";

const TAGS = [
  "p", "em", "strong", "code", "pre", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "blockquote", "h3", "h4",
];

/** The elements of these nodes. */
export const elements = (nodes) => nodes.map((node) => {
  if (typeof node === "string") return node;
  const { tag, href, src, alt, children = [] } = node;
  if (tag === "img") return picture(`api/lessons/${src}`, alt ?? "");
  if (tag === "a") return link(href, elements(children));
  return el(TAGS.includes(tag) ? tag : "span", {}, ...elements(children));
});

/** A link to a lesson, a term or another site. Any other file becomes its path: the page has no source files. */
function link(href, inside) {
  if (href.startsWith("https://")) return el("a", { href, rel: "noreferrer" }, ...inside);
  const lesson = /^(?:\.\.\/lessons\/)?(\d+)-[^/]*\.md/.exec(href)?.[1];
  if (lesson) return el("a", { href: `#/lessons/${Number(lesson)}` }, ...inside);
  const term = /^(?:\.\.\/docs\/glossary\.md)?#(.+)/.exec(href)?.[1];
  if (term) {
    const explains = button("", () => explain(term), { class: "term", "aria-haspopup": "dialog" });
    explains.append(...inside);
    return explains;
  }
  const path = new URL(href, "file:///lessons/").pathname.slice(1);
  return el("span", {}, ...inside, " (", el("code", {}, path), ")");
}

const dialog = byId("term");
let glossary = null;

/** Shows this in the dialog, also in place of another term. */
function open(title, ...content) {
  say(byId("term-title"), title);
  byId("term-text").replaceChildren(...content);
  if (!dialog.open) dialog.showModal();
}

/** A picture, which a press shows as large as the screen allows. */
function picture(src, alt) {
  const shown = () => el("img", { src, alt });
  const enlarges = button("", () => open("Picture", shown()), { class: "picture-button", title: "Enlarge", "aria-haspopup": "dialog" });
  enlarges.append(shown());
  return enlarges;
}

async function explain(name) {
  let term;
  try {
    glossary ??= (await ask("api/lessons/glossary")).terms;
    term = glossary[decodeURIComponent(name)] ?? { title: name, content: ["The glossary does not have it."] };
  } catch (error) {
    term = { title: name, content: [`The glossary cannot be read: ${error.message}.`] };
  }
  open(term.title, ...elements(term.content));
}

byId("term-close").addEventListener("click", () => dialog.close());
