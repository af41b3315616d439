// The API for people, made from /openapi.json.
const SHOWN = ["Generate", "Params", "Lora", "Accepted", "Task", "Image"];

function make(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function type(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(type).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${type(schema.items)}`;
  return [schema.type].flat().filter((name) => name !== "null").join(" or ");
}

function limits(schema) {
  const inner = [schema, ...(schema.anyOf || [])];
  const find = (key) => inner.map((part) => part[key]).find((value) => value !== undefined);
  const [low, high, longest] = [find("minimum"), find("maximum"), find("maxLength")];
  const words = [];
  if (low !== undefined && high !== undefined) words.push(`${low} to ${high}`);
  else if (low !== undefined) words.push(`from ${low}`);
  if (longest !== undefined) words.push(`at most ${longest} characters`);
  if (schema.default !== undefined && schema.default !== null && typeof schema.default !== "object") words.push(`default ${schema.default}`);
  return words.join("; ");
}

function table(schema) {
  const node = make("table");
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = make("tr");
    const required = (schema.required || []).includes(name);
    const about = make("td", "", [field.description, limits(field)].filter(Boolean).join(" "));
    row.append(make("td", "", name + (required ? " *" : "")), make("td", "sub", type(field)), about);
    node.append(row);
  }
  const box = make("div", "scroll");
  box.append(node);
  return box;
}

function operation(verb, path, what) {
  const node = make("details", "op");
  const line = make("summary");
  line.append(make("span", `verb ${verb}`, verb.toUpperCase()), make("code", "", path), make("span", "sub", what.summary));
  node.append(line, make("p", "", what.description));
  const answers = make("table");
  for (const [status, answer] of Object.entries(what.responses)) {
    const row = make("tr");
    row.append(make("td", "", status), make("td", "", answer.description));
    answers.append(row);
  }
  node.append(answers);
  return node;
}

const api = await (await fetch("/openapi.json")).json();
document.getElementById("example").textContent = `curl ${location.origin}/api/v1/image/generate -H 'Content-Type: application/json' \\
  -d '{"text": "a cute panda", "params": {"resolution": "512x512", "seed": 7}}'

curl ${location.origin}/api/v1/image/task/TASK_ID        # data.images[0].url, once status is "succeeded"`;
for (const tag of api.tags) {
  const section = make("section", "panel");
  section.append(make("h2", "", tag.name === "tasks" ? "Tasks" : "Service"), make("p", "sub", tag.description));
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, what] of Object.entries(verbs)) {
      if (what.tags?.includes(tag.name)) section.append(operation(verb, path, what));
    }
  }
  document.getElementById("operations").append(section);
}
for (const name of SHOWN) {
  const schema = api.components.schemas[name];
  document.getElementById("schemas").append(make("h3", "", name), table(schema));
}
