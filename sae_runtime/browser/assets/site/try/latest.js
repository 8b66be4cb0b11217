// Work that a moving slider asks for again and again: one run at a time, and of those that wait only the newest.

// ask(request) runs `work`, then `done` with its result. A request that comes during a run waits; an older one that waits
// is dropped. A failure is told unless a newer request waits.
export function latest(work, { done, failed }) {
  let waiting = null, running = false;
  return async function ask(request) {
    waiting = { request };
    if (running) return;
    running = true;
    while (waiting) {
      const { request: next } = waiting;
      waiting = null;
      try {
        done(await work(next), next);
      } catch (error) {
        if (!waiting) failed(error);
      }
    }
    running = false;
  };
}

// Calls `run` when there was no call for so many milliseconds.
export function after(milliseconds, run) {
  let timer = 0;
  const later = (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
