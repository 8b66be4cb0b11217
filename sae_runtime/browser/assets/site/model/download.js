// Files of a model, with the bytes counted as they come.

// The file's bytes. `size` is what model.json says; null where it does not. `onBytes` gets the number of new bytes.
export async function download(url, size, onBytes) {
  let answer;
  try {
    answer = await fetch(url);
  } catch (error) {
    throw new Error(`${name(url)} cannot be fetched (${error.message}); see whether the site is still served`);
  }
  if (!answer.ok) {
    throw new Error(`${name(url)} cannot be fetched: the server answers ${answer.status}; write the site again`);
  }
  const parts = [];
  const whole = size === null ? null : new Uint8Array(size);
  let got = 0;
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw new Error(`${name(url)} breaks off after ${got} bytes (${error.message}); load the model again`);
    });
    if (done) break;
    if (whole && got + value.length > size) {
      throw new Error(`${name(url)} is larger than model.json says; load the page again`);
    }
    if (whole) whole.set(value, got);
    else parts.push(value);
    got += value.length;
    onBytes(value.length);
  }
  if (whole && got < size) throw new Error(`${name(url)} ends after ${got} of ${size} bytes; load the page again`);
  return whole ?? new Uint8Array(await new Blob(parts).arrayBuffer());
}

const name = (url) => new URL(url).pathname.split("/").at(-1);

// The address of a file in the model's folder. model.json may come from a stranger: it names files there and nowhere
// else, since a worker is not held by the page's policy.
export function inFolder(folder, file) {
  if (typeof file !== "string" || !/^[\w-][\w.-]*$/.test(file)) {
    throw new Error("model.json names a file that is not in its folder; write the site again");
  }
  return new URL(file, folder).href;
}
