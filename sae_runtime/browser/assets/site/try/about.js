// What the site says of its model, without loading the model.

let asked = null; // one site a page, so it is read once

// The content of model/model.json, with "chat": whether a language model has a chat template; null: the site has no model.
export function aboutModel(site) {
  asked ??= site.model ? read(site.model) : Promise.resolve(null);
  return asked;
}

async function read(path) {
  const answer = await fetch(path);
  if (!answer.ok) {
    asked = null;
    throw new Error(`${path} of this site could not be read (${answer.status}); write the site again.`);
  }
  const about = await answer.json();
  return { ...about, chat: about.kind !== "text" || Boolean(about.text?.chat), in: "page" };
}
