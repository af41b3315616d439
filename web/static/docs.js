// The API for people, made from /openapi.json: an index, every operation with a command to try, every schema.

import { byId, copyButton, h, show, text } from "./dom.js";

const BODIES = { Generate: { text: "a cute panda", params: { resolution: "512x512", seed: 7 } } };

const named = (ref) => ref.split("/").pop();
const place = (name) => name.replace(/[^A-Za-z0-9]+/g, "-");

/** Words in which `backticks` mark code. */
const prose = (words) => String(words || "").split("`").map((piece, index) => (index % 2 ? h("code", {}, piece) : piece));

/** A type in words, with links to the schemas it names. */
function typeOf(schema) {
  if (!schema) return ["anything"];
  if (schema.$ref) return [h("a", { href: `#schema-${named(schema.$ref)}` }, named(schema.$ref))];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.anyOf) {
    const kinds = schema.anyOf.filter((kind) => kind.type !== "null").map(typeOf);
    return kinds.flatMap((kind, index) => (index ? [" or ", ...kind] : kind));
  }
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items)];
  return [[schema.type || "anything"].flat().filter((name) => name !== "null").join(" or ")];
}

/** The limits of a value in words. */
function limitsOf(schema) {
  const inner = [schema, ...(schema.anyOf || [])];
  const find = (key) => inner.map((kind) => kind[key]).find((value) => value !== undefined);
  const [low, high, longest, preset] = ["minimum", "maximum", "maxLength", "default"].map(find);
  const words = [];
  if (low !== undefined && high !== undefined) words.push(`${low} to ${high}`);
  else if (low !== undefined) words.push(`from ${low}`);
  if (longest !== undefined) words.push(`at most ${longest} characters`);
  if (preset !== undefined && preset !== null && typeof preset !== "object") words.push(`${JSON.stringify(preset)} by default`);
  return words.join(", ");
}

function row(name, schema, note, required) {
  const limits = limitsOf(schema || {});
  const about = [h("span", { class: "type" }, ...typeOf(schema), limits && `, ${limits}`)];
  if (note) about.push(h("br"), ...prose(note));
  return h("div", {}, h("dt", {}, name, required && h("span", { class: "need" }, "required")), h("dd", {}, ...about));
}

function fields(schema) {
  const rows = Object.entries(schema.properties || {});
  return h("dl", { class: "rows" }, ...rows.map(([name, field]) =>
    row(name, field, field.description, (schema.required || []).includes(name))));
}

function bodyOf(schema) {
  if (schema.$ref) return BODIES[named(schema.$ref)] || {};
  const known = Object.entries(schema.properties || {}).filter(([name]) => (schema.required || []).includes(name));
  return Object.fromEntries(known.map(([name, field]) => [name, field.examples?.at(-1) ?? field.default ?? ""]));
}

/** A command that does it; only names in capitals need to be filled in. */
function command(verb, path, what, parameters) {
  const query = parameters.filter((one) => one.in === "query" && one.required).map((one) => `${one.name}=${one.name.toUpperCase()}`);
  const target = path.replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase()) + (query.length ? `?${query.join("&")}` : "");
  const stream = "text/event-stream" in (what.responses["200"]?.content || {});
  const words = [`curl ${stream ? "-N " : ""}${verb === "get" ? "" : `-X ${verb.toUpperCase()} `}'${location.origin}${target}'`];
  const body = what.requestBody?.content["application/json"]?.schema;
  if (body) words.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(bodyOf(body))}'`);
  return words.join(" \\\n  ");
}

function operation({ verb, path, what, parameters }) {
  const said = command(verb, path, what, parameters);
  const body = what.requestBody?.content["application/json"]?.schema;
  const answer = what.responses["200"]?.content?.["application/json"]?.schema;
  const data = answer?.properties?.data || answer;
  const answers = Object.entries(what.responses);
  return h("article", { class: "panel operation", id: `op-${what.operationId}`, "aria-labelledby": `title-${what.operationId}` },
    h("header", {}, h("h3", { id: `title-${what.operationId}` }, what.summary),
      h("p", { class: "op-line" }, h("span", { class: "verb", "data-verb": verb }, verb.toUpperCase()), h("span", {}, path))),
    h("p", {}, ...prose(what.description)),
    h("div", { class: "example" }, h("pre", { class: "code", tabindex: 0, "aria-label": `Command: ${what.summary}` }, said), copyButton(() => said)),
    parameters.length > 0 && h("section", {}, h("h4", {}, "Parameters"), h("dl", { class: "rows" },
      ...parameters.map((one) => row(one.name, one.schema, [one.in === "header" && "A header.", one.description].filter(Boolean).join(" "), one.required)))),
    body && h("section", {}, h("h4", {}, "Body"), body.$ref ? h("p", {}, ...typeOf(body)) : fields(body)),
    data && h("section", {}, h("h4", {}, answer.properties?.data ? "Answer, in data" : "Answer"), data.properties ? fields(data) : h("p", {}, ...typeOf(data))),
    h("section", {}, h("h4", {}, "Statuses"), h("dl", { class: "rows" },
      ...answers.map(([status, one]) => h("div", {}, h("dt", {}, status), h("dd", {}, ...prose(one.description)))))));
}

function operationsOf(api) {
  return Object.entries(api.paths).flatMap(([path, item]) => Object.entries(item)
    .filter(([, what]) => what.operationId)
    .map(([verb, what]) => ({ verb, path, what, parameters: [...(item.parameters || []), ...(what.parameters || [])] })));
}

const link = (target, words) => h("a", { href: `#${target}` }, words);
const titled = (words) => words.charAt(0).toUpperCase() + words.slice(1);

function build(api) {
  const all = operationsOf(api);
  const schemas = Object.entries(api.components.schemas);
  const groups = api.tags.map((tag) => ({ tag, found: all.filter(({ what }) => what.tags.includes(tag.name)) }));
  text(byId("title"), `${api.info.title} API`);
  byId("about").replaceChildren(
    h("p", {}, [api.info.summary, api.info.description].filter(Boolean).join(" ")),
    h("p", {}, "Answers are JSON: ", h("code", {}, '{"code": 0, "message", "data"}'), ", or ", h("code", {}, '{"code": "a_word", "message"}'),
      " with a status that fits and a sentence that says what to change. Where API keys are set, send one as ", h("code", {}, "Authorization: Bearer KEY"), "."));
  byId("operations").replaceChildren(...groups.map(({ tag, found }) =>
    h("section", { class: "group", id: `tag-${place(tag.name)}`, "aria-labelledby": `group-${place(tag.name)}` },
      h("h2", { id: `group-${place(tag.name)}` }, titled(tag.name)), h("p", { class: "quiet" }, tag.description), ...found.map(operation))));
  byId("schema-list").replaceChildren(...schemas.map(([name, schema]) =>
    h("article", { class: "panel schema", id: `schema-${name}` }, h("h3", {}, name),
      schema.description && h("p", { class: "quiet" }, ...prose(schema.description)), schema.properties ? fields(schema) : h("p", { class: "quiet" }, ...typeOf(schema)))));
  byId("toc").replaceChildren(
    ...groups.map(({ tag, found }) => h("section", {}, h("h2", {}, titled(tag.name)), ...found.map(({ what }) => link(`op-${what.operationId}`, what.summary)))),
    h("section", {}, h("h2", {}, "Schemas"), ...schemas.map(([name]) => link(`schema-${name}`, name))));
  show(byId("schemas"), true);
}

/** Mark in the index what is being read. */
function followReading() {
  const links = new Map([...byId("toc").querySelectorAll("a")].map((one) => [one.hash.slice(1), one]));
  const visible = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const first = [...links.keys()].find((id) => visible.has(id));
    for (const [id, one] of links) {
      if (id === first) one.setAttribute("aria-current", "true");
      else one.removeAttribute("aria-current");
    }
  }, { rootMargin: "-80px 0px -60% 0px" });
  for (const id of links.keys()) watch.observe(byId(id));
}

try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
  build(await answer.json());
  followReading();
  if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
} catch (error) {
  byId("about").replaceChildren(h("p", { class: "field-error" }, `The description of the API could not be read: ${error.message}`));
}
