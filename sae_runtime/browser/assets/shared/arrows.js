// Arrow keys, Home and End in a row of things of which one is chosen, as the patterns of ARIA have them.

// Calls `go` with the number of the thing that the key leads to.
export function arrows(event, chosen, count, go) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -count, End: count }[event.key];
  if (step === undefined || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  event.preventDefault();
  event.stopPropagation(); // the arrows of the page itself lead to the next feature
  go(Math.min(Math.max(chosen + step, 0), count - 1));
}
