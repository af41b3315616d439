// Building and updating the page. Text only ever enters through textContent or attributes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("p", {class: "note", onclick: f}, "text", child)`. `null` and `false` children are left out. */
export function h(tag, props = {}, ...children) {
  return assemble(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function s(tag, props = {}, ...children) {
  return assemble(document.createElementNS(SVG, tag), props, children);
}

function assemble(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** Set the text of a node, only if it differs: an untouched node keeps its selection and is not announced again. */
export function text(node, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Set an attribute, or remove it for `null`; only if it differs. */
export function attr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** Show or hide. */
export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/**
 * Make the children of `parent` show `items` in order, reusing the element of every key that stays: what a person
 * has focused, opened or hovered survives an update.
 */
export function reconcile(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = old.get(key);
    if (node) old.delete(key);
    else {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const gone of old.values()) gone.remove();
}

/** The descendants marked `data-part="name"`, by name: handles for updates. */
export function parts(node) {
  if (!node.partsByName) {
    node.partsByName = Object.fromEntries(
      [...node.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]),
    );
  }
  return node.partsByName;
}

/** A horizontal bar whose length is set with `fill`. */
export function bar(label) {
  return h("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
    h("div", { class: "bar-fill" }));
}

/** Set the length of a bar, 0 to 1. */
export function fill(node, share) {
  const percent = Math.round(Math.max(0, Math.min(1, share || 0)) * 1000) / 10;
  attr(node, "aria-valuenow", Math.round(percent));
  const width = `${percent}%`;
  if (node.firstElementChild.style.width !== width) node.firstElementChild.style.width = width;
}

/** A copy button for what `read` gives at the time of the click. */
export function copyButton(read, label = "Copy") {
  const button = h("button", { type: "button", class: "button small" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(read());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy by hand";
    }
    setTimeout(() => { button.textContent = label; }, 1800);
  });
  return button;
}
