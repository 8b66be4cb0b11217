// What the site says of its model, without loading the model.

const KINDS = ["vectors", "text", "other"];
let asked = null; // one site a page, so it is read once

// The content of model/model.json, with "chat": whether a language model has a chat template; null: the site has no model.
export function aboutModel(site) {
  asked ??= site.model ? read(site.model) : Promise.resolve(null);
  asked.catch(() => { asked = null; });
  return asked;
}

async function read(path) {
  let about;
  try {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(answer.status);
    about = await answer.json();
  } catch (error) {
    throw new Error(`${path} of this site could not be read (${error.message}); write the site again with sae-runtime browse.`);
  }
  const texts = (list) => Array.isArray(list) && list.every((one) => typeof one === "string");
  const isWhole = about && KINDS.includes(about.kind) && typeof about.name === "string" && Number.isFinite(about.bytes)
    && Array.isArray(about.saes) && about.saes.every((sae) => typeof sae?.name === "string") && texts(about.sentences ?? []) && texts(about.notes ?? []);
  if (!isWhole) throw new Error(`${path} of this site does not describe a model; write the site again with sae-runtime browse.`);
  return { ...about, sentences: about.sentences ?? [], chat: about.kind !== "text" || Boolean(about.text?.chat), in: "page" };
}
