// The sampler of positron_mini/generate.py in the browser, so that the bars follow a slider at once. A test checks that the two agree.

/** Probabilities with which the next token is drawn: temperature, top-k, top-p, min-p, in this order. */
export function distribution(logits, { temperature = 1, top_k = 0, top_p = 1, min_p = 0 }) {
  const scaled = Float64Array.from(logits);
  if (temperature === 0) {
    const best = scaled.reduce((at, value, i) => (value > scaled[at] ? i : at), 0);
    return scaled.fill(0).fill(1, best, best + 1);
  }
  for (let i = 0; i < scaled.length; i++) scaled[i] /= temperature;
  return softmax(keepMinP(keepTopP(keepTopK(scaled, top_k), top_p), min_p));
}

export function softmax(logits) {
  let largest = -Infinity;
  for (const value of logits) if (value > largest) largest = value;
  const p = Float64Array.from(logits, (value) => Math.exp(value - largest));
  let total = 0;
  for (const value of p) total += value;
  return p.map((value) => value / total);
}

function keepTopK(logits, k) {
  if (k === 0 || k >= logits.length) return logits;
  const kth = Float64Array.from(logits).sort()[logits.length - k];
  return logits.map((value) => (value < kth ? -Infinity : value));
}

function keepTopP(logits, p) {
  if (p >= 1) return logits;
  const probability = softmax(logits);
  const order = Array.from(probability.keys()).sort((a, b) => probability[b] - probability[a]); // stable, as in torch
  const kept = Float64Array.from(logits);
  let before = 0;
  order.forEach((index, rank) => {
    if (rank > 0 && before >= p) kept[index] = -Infinity;
    before += probability[index];
  });
  return kept;
}

function keepMinP(logits, p) {
  if (p <= 0) return logits;
  const probability = softmax(logits);
  let largest = 0;
  for (const value of probability) if (value > largest) largest = value;
  return logits.map((value, i) => (probability[i] < p * largest ? -Infinity : value));
}

/** The token whose stretch of the cumulative probability holds `uniform` in [0, 1). */
export function draw(probabilities, uniform) {
  let before = 0;
  let last = 0;
  for (let i = 0; i < probabilities.length; i++) {
    if (probabilities[i] === 0) continue;
    before += probabilities[i];
    last = i;
    if (uniform < before) return i;
  }
  return last;
}

/** The `n` ids with the largest logits, the largest first. */
export function largest(logits, n) {
  return Array.from(logits.keys())
    .sort((a, b) => logits[b] - logits[a])
    .slice(0, n);
}
