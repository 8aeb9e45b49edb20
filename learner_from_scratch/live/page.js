// The page "In your browser", and the live part of a report: shows what network.js computes. It
// reads the files that the page names and those that the reader gives it, and sends nothing.
import * as nn from './network.js';

const root = document.getElementById('live'), strip = document.getElementById('learn');
const places = [root, strip].filter(Boolean); // a report has no `learn`
const state = {net: null, image: null, answer: null, file: ''};
const chosen = {layer: 0, step: 1, map: 0, row: 12, col: 12};
const chapter = {nets: [], about: null};
export const current = () => state;

function el(tag, props = {}, ...inside) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props))
    if (k in e && !k.startsWith('aria')) e[k] = v; else e.setAttribute(k, v);
  e.append(...inside);
  return e;
}
const button = (text, onclick, props = {}) => el('button', {type: 'button', onclick, ...props}, text);
const short = v => (Math.abs(v) >= 99.5 ? v.toFixed(0) : v.toFixed(2)).replace('-', '−');
const plus = v => (v < 0 ? ' − ' : ' + ') + short(Math.abs(v));
const joined = (vs, texts) => vs.map((v, i) => (i ? plus(v) : short(v)) + texts[i]).join('');
const percent = p => `${(100*p).toFixed(1)} %`;
const times = shape => shape.join('×');

// --- colours: the site's own, so light and dark are right ---
const probe = el('canvas', {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
function rgb(name) {
  probe.fillStyle = getComputedStyle(root).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
let colours = null;
const readColours = () => colours = {zero: rgb('--soft'), plus: rgb('--accent'), minus: rgb('--code')};

function mapImage(x, k, most) { // map k of x as a canvas of one pixel a number
  const [h, w] = x.shape.length === 3 ? x.shape.slice(1) : [1, 1];
  const c = el('canvas', {width: w, height: h}), g = c.getContext('2d');
  const im = g.createImageData(w, h);
  for (let i = 0; i < h*w; i++) {
    const v = x.data[k*h*w + i], t = Math.min(1, Math.sqrt(Math.abs(v)/most));
    const to = v < 0 ? colours.minus : colours.plus;
    for (let j = 0; j < 3; j++) im.data[4*i + j] = colours.zero[j] + t*(to[j] - colours.zero[j]);
    im.data[4*i + 3] = 255;
  }
  g.putImageData(im, 0, 0);
  return c;
}
const largest = x => x.data.reduce((a, v) => Math.max(a, Math.abs(v)), 1e-9);

function sharp(canvas, w, h) { // a canvas of w×h CSS pixels, sharp on every screen
  const d = devicePixelRatio || 1;
  canvas.width = w*d; canvas.height = h*d;
  canvas.style.width = `${w}px`; canvas.style.height = `${h}px`;
  const g = canvas.getContext('2d');
  g.scale(d, d);
  g.imageSmoothingEnabled = false;
  return g;
}

function paintPixels(canvas, pixels, side, css) {
  const c = el('canvas', {width: side, height: side}), g = c.getContext('2d');
  const im = g.createImageData(side, side);
  for (let i = 0; i < side*side; i++) {
    for (let j = 0; j < 3; j++) im.data[4*i + j] = pixels[3*i + j];
    im.data[4*i + 3] = 255;
  }
  g.putImageData(im, 0, 0);
  sharp(canvas, css, css).drawImage(c, 0, 0, css, css);
}

// --- the page's parts ---
const say = el('p', {className: 'live-say', role: 'status', 'aria-live': 'polite'});
const problem = el('p', {className: 'live-problem', role: 'alert', hidden: true});
const group = (className, label) => el('div', {className, role: 'group', 'aria-label': label});
const thumbs = group('live-thumbs', 'Validation images');
const input = el('canvas', {className: 'live-input', role: 'img', 'aria-label': 'The input'});
const about = el('p', {className: 'live-about'}), made = el('p', {className: 'live-about'});
const probs = el('ul', {className: 'live-probs', 'aria-label': 'Probabilities'});
const layers = el('div', {className: 'live-layers'});
const panel = group('live-panel', 'How this number is made');
const back = button('Back to the first network', () => {
  useEpoch(chapter.nets.length);
  thumbs.firstChild.focus(); // this button goes, and the keyboard needs a place
}, {hidden: true});

function picker(text, accept, take) {
  const file = el('input', {type: 'file', accept, className: 'live-file',
    onchange: () => { if (file.files[0]) take(file.files[0]); file.value = ''; }});
  return el('label', {className: 'live-pick'}, file, text);
}

function fail(text) { problem.textContent = text; problem.hidden = !text; }

// --- images ---
async function decode(blob) {
  const how = {colorSpaceConversion: 'none', imageOrientation: 'from-image'};
  const bitmap = await createImageBitmap(blob, how), {width: w, height: h} = bitmap;
  if (w*h > 5e7) throw new Error(`has ${w}×${h} pixels, and 50 million are the most`);
  const g = el('canvas', {width: w, height: h}).getContext('2d', {willReadFrequently: true});
  g.fillStyle = 'white'; // what is transparent becomes white, as in the library
  g.fillRect(0, 0, w, h);
  g.drawImage(bitmap, 0, 0);
  bitmap.close();
  return {pixels: withoutAlpha(g.getImageData(0, 0, w, h).data), w, h};
}

function withoutAlpha(rgba) {
  const out = new Uint8Array(rgba.length/4*3);
  for (let i = 0, j = 0; i < rgba.length; i += 4)
    for (let c = 0; c < 3; c++) out[j++] = rgba[i + c];
  return out;
}

export async function readPhoto(file) {
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  const jpeg = start[0] === 0xff && start[1] === 0xd8;
  return {...await decode(file), jpeg, name: file.name, truth: ''};
}

export function inputPixels({pixels, w, h, jpeg}, side) {
  const o = jpeg ? nn.jpegDraft(pixels, w, h, side) : {pixels, w, h};
  return nn.resize(o.pixels, o.w, o.h, side);
}

async function takePhoto(file) {
  try { use(await readPhoto(file)); }
  catch (e) {
    const why = e.message.startsWith('has ') ? e.message : 'is no image that this browser reads';
    return fail(`${file.name} ${why}.`);
  }
  fail('');
}

async function takeNetwork(file) {
  try {
    if (file.size > 2e8) throw new Error('It has more than 200 MB.');
    const net = nn.makeNetwork(nn.readSafetensors(await file.arrayBuffer()));
    fail('');
    useNetwork(net, file.name);
  } catch (e) { fail(`${file.name} can’t be used. ${e.message} Nothing of it was run.`); }
}

// by its name, as many systems give a photo in HEIC no type
const take = file => file.name.endsWith('.safetensors') ? takeNetwork(file) : takePhoto(file);

function use(image) {
  if (!image.live) { stopCamera(); fail(''); } // another image was chosen
  state.image = image;
  update();
}

function useNetwork(net, name) {
  state.net = net;
  state.file = name;
  const last = net.layers.length - 1;
  if (chosen.layer > last) Object.assign(chosen, {layer: 0, step: 1, map: 0});
  buildLayers();
  update();
}

// --- one pass through the network, and what it says ---
function update() {
  const {net, image} = state;
  if (!net || !image) return;
  const pixels = inputPixels(image, net.size), start = performance.now();
  state.pixels = pixels;
  state.answer = nn.run(net, nn.normalize(pixels, net.size, net.stats));
  const ms = Math.max(1, Math.round(performance.now() - start));
  paintPixels(input, pixels, net.size, 128);
  input.setAttribute('aria-label', `The input, ${image.name}, ${net.size}×${net.size} pixels`);
  const best = argmax(state.answer.probs);
  say.setAttribute('aria-live', image.live ? 'off' : 'polite'); // five times a second is too much
  const truth = net.vocab.includes(image.truth) ? ` It is ${aOr(image.truth)}.` : '';
  say.replaceChildren('The network says ', el('strong', {}, net.vocab[best]),
    `, ${percent(state.answer.probs[best])}.${truth} Computed in ${ms} ms.`);
  about.textContent = `${state.file}: ${net.arch}, ${net.weights.toLocaleString('en')} numbers, ` +
    `${net.vocab.length} classes, images of ${net.size}×${net.size} pixels.`;
  made.textContent = image.note ?? (image.jpeg ? jpegNote : exactNote);
  back.hidden = chapter.nets.includes(net);
  for (const b of thumbs.children) b.setAttribute('aria-pressed', b.image === image);
  showProbs();
  paintLayers();
  learn();
}
const aOr = name => /^[aeiou]/i.test(name) ? `an ${name}` : `a ${name}`;
const exactNote = 'Made small as the library does it: no number differs by more than 1 of 255.';
const jpegNote = 'The library lets the JPEG decoder shrink the photo, and a browser can’t: ' +
  'these pixels differ from the library’s by less than 2 of 255 on average, at edges by more.';

function showProbs() {
  const {net, answer} = state;
  const all = net.vocab.map((name, i) => ({name, p: answer.probs[i]}));
  const some = all.length > 10 ? all.sort((a, b) => b.p - a.p).slice(0, 10) : all;
  const most = Math.max(...answer.probs);
  probs.replaceChildren(...some.map(({name, p}) => {
    const bar = el('span', {className: 'live-bar'});
    bar.style.setProperty('--p', p);
    return el('li', {className: p === most ? 'live-best' : ''},
      el('span', {className: 'live-name'}, name), bar, el('span', {}, percent(p)));
  }));
}

// --- the layers ---
const opName = {conv: 'convolution', norm: 'BatchNorm', relu: 'ReLU', add: 'residual sum',
  maxpool: 'max pool', mean: 'mean', linear: 'linear'};

function buildLayers() {
  layers.replaceChildren(...state.net.layers.map(({name, steps}, l) => {
    const names = steps.map(s => opName[s.op]);
    const title = el('h3', {}, `${l + 1} · ${names.join(', ')} `, el('small', {}));
    const choice = group('live-steps', `Show layer ${l + 1} after`);
    if (steps.length > 1) choice.append(el('span', {}, 'after '), ...steps.map((s, i) =>
      button(opName[s.op], () => {
        shown[l] = i;
        if (chosen.layer === l) chosen.step = i;
        paintLayers();
      })));
    const grid = el('canvas', {className: 'live-grid', tabIndex: 0, role: 'slider',
      'aria-label': `Map of layer ${l + 1}`, 'aria-valuemin': 1});
    grid.onpointermove = e => grid.title = nameOf(l, at(grid, e.offsetX, e.offsetY));
    grid.onclick = e => choose(l, at(grid, e.offsetX, e.offsetY));
    grid.onkeydown = e => {
      const n = grid.n, now = chosen.layer === l ? chosen.map : -1, cols = grid.cols;
      const go = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: cols, ArrowUp: -cols}[e.key];
      const to = e.key === 'Home' ? 0 : e.key === 'End' ? n - 1 : go ? now + go : null;
      if (to === null) return;
      e.preventDefault();
      choose(l, Math.min(n - 1, Math.max(0, to)));
    };
    return el('section', {className: 'live-layer'}, title, choice, grid);
  }));
  shown = state.net.layers.map(o => o.steps.length - 1);
  chosen.step = shown[chosen.layer];
}
let shown = [];

function at(grid, x, y) {
  const k = Math.floor(y/grid.pitch)*grid.cols + Math.floor(x/grid.pitch);
  return Math.min(k, grid.n - 1);
}

function nameOf(l, k) { // number k of the last layer is the score of a class
  const {layers, vocab} = state.net;
  return l === layers.length - 1 ? `the score of ${vocab[k]}` : `map ${k + 1}`;
}

function choose(l, map) {
  Object.assign(chosen, {layer: l, step: shown[l], map});
  paintLayers();
}

const cellSize = side => side >= 32 ? 64 : side >= 16 ? 48 : side >= 8 ? 34 : side >= 2 ? 24 : 18;

function paintLayers() {
  if (!state.answer) return;
  stayInside();
  readColours();
  const ink = `rgb(${rgb('--fg')})`, line = `rgb(${rgb('--line')})`;
  [...layers.children].forEach((section, l) => {
    const x = state.answer.outputs[l][shown[l]], n = x.shape[0], side = x.shape[2] ?? 1;
    const grid = section.querySelector('canvas'), gap = 3, cell = cellSize(side);
    grid.pitch = cell + gap;
    grid.n = n;
    grid.cols = Math.max(1, Math.floor((layers.clientWidth + gap)/grid.pitch));
    const rows = Math.ceil(n/grid.cols), most = largest(x);
    const sources = l === chosen.layer - 1 ? strongest() : [];
    const g = sharp(grid, Math.min(n, grid.cols)*grid.pitch, rows*grid.pitch);
    for (let k = 0; k < n; k++) {
      const left = k % grid.cols*grid.pitch + 1.5, top = Math.floor(k/grid.cols)*grid.pitch + 1.5;
      const mine = chosen.layer === l && chosen.map === k, source = sources.includes(k);
      g.drawImage(mapImage(x, k, most), left, top, cell, cell);
      g.strokeStyle = mine || source ? ink : line;
      g.lineWidth = mine ? 3 : source ? 1.5 : 1;
      g.strokeRect(left - .5, top - .5, cell + 1, cell + 1);
    }
    const now = chosen.layer === l ? chosen.map : 0, values = mapValues(x, now);
    grid.setAttribute('aria-valuemax', n);
    grid.setAttribute('aria-valuenow', now + 1);
    grid.setAttribute('aria-valuetext', `${nameOf(l, now)} of ${n}, mean ` +
      `${short(values.reduce((a, b) => a + b, 0)/values.length)}, largest ${short(Math.max(...values))}`);
    section.querySelector('small').textContent = side > 1 || x.shape.length === 3 ?
      `${n} maps of ${x.shape[1]}×${side}` : l + 1 < layers.children.length ?
      `${n} numbers, one a map` : `${n} scores, one a class`;
    section.querySelectorAll('.live-steps button').forEach((b, i) =>
      b.setAttribute('aria-pressed', i === shown[l]));
    if (chosen.layer === l && panel.parentNode !== section) section.append(panel);
  });
  explain();
}

function mapValues(x, k) {
  const n = x.data.length/x.shape[0];
  return x.data.subarray(k*n, (k + 1)*n);
}

// --- how one number is made ---
const clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
let timer = null;
const play = button('Play', () => {
  if (timer) { clearInterval(timer); timer = null; } else timer = setInterval(next, 250);
  play.textContent = timer ? 'Pause' : 'Play';
});
const rowRange = el('input', {type: 'range', min: 1, oninput: moved});
const colRange = el('input', {type: 'range', min: 1, oninput: moved});
const big = el('canvas', {className: 'live-big', role: 'img', onclick: e => {
  place(Math.floor(e.offsetY/big.pitch), Math.floor(e.offsetX/big.pitch)); }});
const title = el('p', {className: 'live-title'}), sums = el('div', {className: 'live-sums'});
const chain = el('ol', {className: 'live-chain'});
const controls = el('div', {className: 'live-controls'}, big,
  el('label', {}, 'row ', rowRange), el('label', {}, 'column ', colRange), play);
panel.append(title, el('div', {className: 'live-two'}, controls, sums), chain);

function moved() { place(rowRange.value - 1, colRange.value - 1); }
function place(row, col) { Object.assign(chosen, {row, col}); paintLayers(); }
function next() {
  if (!panel.isConnected || chosen.size === undefined) return;
  const [h, w] = chosen.size, p = (chosen.row*w + chosen.col + 1) % (h*w);
  place(Math.floor(p/w), p % w);
}

function stayInside() { // the chosen map and place, where another layer has fewer
  const [n, ...size] = state.answer.outputs[chosen.layer][chosen.step].shape;
  chosen.map = clamp(chosen.map, n);
  if (size.length < 2) return;
  chosen.size = size;
  chosen.row = clamp(chosen.row, size[0]);
  chosen.col = clamp(chosen.col, size[1]);
}

function explain() {
  const {layer, step, map} = chosen, {steps} = state.net.layers[layer];
  const x = state.answer.outputs[layer][step], flat = x.shape.length < 3;
  controls.hidden = sums.hidden = flat;
  if (flat && timer) play.click(); // there are no places to go through
  if (flat) return explainFlat(steps[step], x, map);
  const [, h, w] = x.shape;
  Object.assign(rowRange, {max: h, value: chosen.row + 1});
  Object.assign(colRange, {max: w, value: chosen.col + 1});
  const where = `row ${chosen.row + 1}, column ${chosen.col + 1}`;
  title.textContent = `Layer ${layer + 1}, map ${map + 1}, ${where}`;
  paintMarked(big, x, map, 160, chosen.row, chosen.col, 1);
  big.setAttribute('aria-label', `Map ${map + 1}, marked at ${where}`);
  big.pitch = 160/Math.max(h, w);
  if (steps[step].op === 'maxpool') return explainPool(step);
  const total = explainConv(steps[0]);
  const lines = steps.slice(1, step + 1).map((s, i) => chainLine(s, layer, i + 1));
  chain.replaceChildren(total, ...lines);
}

function paintMarked(canvas, x, k, css, row, col, n) { // a map with a window of n×n on it
  const [, h, w] = x.shape, p = css/Math.max(h, w), g = sharp(canvas, w*p, h*p);
  g.drawImage(mapImage(x, k, largest(x)), 0, 0, w*p, h*p);
  g.lineWidth = 2;
  g.strokeStyle = `rgb(${rgb('--fg')})`;
  g.strokeRect(col*p, row*p, n*p, n*p);
}

function numberGrid(values, k, label) {
  const most = Math.max(...values.map(Math.abs), 1e-9);
  const t = el('div', {className: 'live-numbers', role: 'img',
    'aria-label': `${label}: ${values.map(short).join(', ')}`});
  t.style.setProperty('--k', k);
  for (const v of values) {
    const cell = el('span', {className: v < 0 ? 'live-minus' : 'live-plus'}, short(v));
    cell.style.setProperty('--t', Math.abs(v)/most);
    t.append(cell);
  }
  return t;
}

function windowOf(x, c, top, left, k) { // what a window of k×k sees; outside are zeros
  const [, h, w] = x.shape, seen = [];
  for (let i = top; i < top + k; i++) for (let j = left; j < left + k; j++)
    seen.push(i < 0 || j < 0 || i >= h || j >= w ? 0 : x.data[(c*h + i)*w + j]);
  return seen;
}

const bySize = (a, b) => Math.abs(b.sum) - Math.abs(a.sum);

function convParts({w, stride}) { // what each channel adds to the chosen number
  const {layer, map, row, col} = chosen, x = state.answer.inputs[layer];
  const [, ni, k] = w.shape, top = row*stride - (k >> 1), left = col*stride - (k >> 1);
  return Array.from({length: ni}, (_, c) => {
    const filter = [...w.data.subarray((map*ni + c)*k*k, (map*ni + c + 1)*k*k)];
    const seen = windowOf(x, c, top, left, k);
    return {c, filter, seen, top, left, sum: seen.reduce((a, v, i) => a + v*filter[i], 0)};
  });
}

function linearParts({w}) { // what each number of the mean adds to the chosen score
  const before = state.answer.inputs[chosen.layer].data, n = before.length;
  const weights = w.data.subarray(chosen.map*n, (chosen.map + 1)*n);
  return Array.from(weights, (v, c) => ({c, w: v, x: before[c], sum: v*before[c]}));
}

function strongest() { // the maps of the layer before that count most for the chosen number
  const s = state.net.layers[chosen.layer].steps[0];
  if (s.op === 'mean') return [chosen.map];
  const parts = s.op === 'linear' ? linearParts(s) : convParts(s);
  return parts.sort(bySize).slice(0, 3).map(o => o.c);
}

function explainConv({w, b, stride}) {
  const {layer, map} = chosen, x = state.answer.inputs[layer], [, ni, k] = w.shape;
  const channels = convParts({w, stride});
  const some = ni > 3 ? [...channels].sort(bySize).slice(0, 3) : channels;
  const name = c => layer ? `map ${c + 1}` : ['red', 'green', 'blue'][c];
  const from = layer ? 'the layer before' : 'the image';
  sums.replaceChildren(...some.map(({c, filter, seen, top, left, sum}) => {
    const thumb = el('canvas', {role: 'img',
      'aria-label': `${name(c)} of ${from}, with the window`});
    paintMarked(thumb, x, c, layers.clientWidth < 600 ? 48 : 72, top, left, k);
    return el('div', {className: 'live-sum'},
      el('figure', {}, thumb, el('figcaption', {}, name(c))),
      numberGrid(seen, k, 'The window sees'), el('span', {}, '×'),
      numberGrid(filter, k, 'The filter'), el('span', {}, `= ${short(sum)}`));
  }));
  const total = os => os.reduce((a, o) => a + o.sum, 0);
  const shownSum = total(some), all = total(channels);
  const bias = b ? b.data[map] : 0, vs = some.map(o => o.sum), texts = vs.map(() => '');
  const more = (v, text) => { vs.push(v); texts.push(text); };
  if (ni > some.length) more(all - shownSum, ` (${ni - some.length} other maps)`);
  if (b) more(bias, ' (bias)');
  return el('li', {}, `convolution: ${joined(vs, texts)} = `, el('strong', {}, short(all + bias)));
}

function chainLine(s, layer, i) {
  const value = o => o.data[(chosen.map*o.shape[1] + chosen.row)*o.shape[2] + chosen.col];
  const outs = state.answer.outputs[layer], k = chosen.map;
  const was = value(outs[i - 1]), is = value(outs[i]);
  const text = {
    relu: () => was < 0 ? `ReLU: ${short(was)} is negative, so ` : 'ReLU: not negative, so still ',
    norm: () => `BatchNorm: (${short(was)}${plus(-s.running_mean.data[k])}) ÷ ` +
      `${short(Math.sqrt(s.running_var.data[k] + 1e-5))} × ${short(s.w.data[k])}${plus(s.b.data[k])} = `,
    add: () => `residual sum: ${short(was)}${plus(is - was)} from the input of the block = `,
  }[s.op]();
  return el('li', {}, text, el('strong', {}, short(is)));
}

function explainPool(step) {
  const {layer, map, row, col} = chosen, x = state.answer.outputs[layer][step - 1];
  const seen = windowOf(x, map, 2*row - 1, 2*col - 1, 3);
  sums.replaceChildren(numberGrid(seen, 3, 'The window sees'));
  const most = el('strong', {}, short(Math.max(...seen)));
  chain.replaceChildren(el('li', {}, 'max pool: the largest of these nine is ', most));
}

function explainFlat(s, x, k) {
  const before = state.answer.inputs[chosen.layer], value = el('strong', {}, short(x.data[k]));
  if (s.op === 'mean') {
    title.textContent = `Number ${k + 1} of ${x.shape[0]}`;
    const n = times(before.shape.slice(1));
    const text = `mean: the ${n} numbers of map ${k + 1} of the layer before have the mean `;
    return chain.replaceChildren(el('li', {}, text, value));
  }
  const parts = linearParts(s).sort(bySize), b = s.b.data[k];
  const some = parts.slice(0, 3).map(o =>
    `number ${o.c + 1}: ${short(o.x)} × ${short(o.w)} = ${short(o.sum)}`);
  const rest = parts.slice(3).reduce((a, o) => a + o.sum, 0);
  title.textContent = `The score of ${state.net.vocab[k]}`;
  const sum = `linear: ${some.join('; ')}; all others ${short(rest)}, bias ${short(b)}; the sum is `;
  const most = Math.max(...x.data), share = Math.exp(x.data[k] - most);
  const all = x.data.reduce((a, v) => a + Math.exp(v - most), 0);
  const soft = `softmax: e to the power of (${short(x.data[k])}${plus(-most)}, the largest score) ` +
    `is ${share.toPrecision(2)}, divided by ${short(all)}, the sum of these over all classes: `;
  chain.replaceChildren(el('li', {}, sum, value),
    el('li', {}, soft, el('strong', {}, percent(state.answer.probs[k]))));
}

// --- see it learn ---
const epochRange = () => el('input', {type: 'range', min: 1, max: 8,
  oninput: e => useEpoch(+e.target.value)});
const epochNow = el('span', {'aria-hidden': true}); // the slider says it
const sliders = [epochRange(), epochRange()]; // beside the images, and above the table
const learned = el('p', {className: 'live-say'});
const table = el('table', {className: 'live-table'});

function useEpoch(e) {
  const net = chapter.nets[e - 1];
  for (const o of sliders) o.value = e;
  epochNow.textContent = e;
  useNetwork(net, root.dataset.name ?? `The chapter’s network after epoch ${e}`);
}

function paintFilters(canvas, net) { // the filters of the first layer, in their colours
  const p = strip.clientWidth < 600 ? 2 : 4, pitch = 3*p + p/2;
  const {w} = net.layers[0].steps[0], most = largest(w), g = sharp(canvas, 4*pitch, 4*pitch);
  for (let f = 0; f < 16; f++) for (let i = 0; i < 9; i++) {
    const c = [0, 1, 2].map(c => 128 + 127*w.data[(3*f + c)*9 + i]/most);
    g.fillStyle = `rgb(${c})`;
    g.fillRect(f % 4*pitch + i % 3*p, (f >> 2)*pitch + Math.floor(i/3)*p, p, p);
  }
}

function buildTable() { // once: a column an epoch, with its filters, and a row a class
  const {nets, about} = chapter;
  const row = (name, cells) => el('tr', {}, el('th', {scope: 'row'}, name), ...cells);
  const heads = nets.map((o, e) => {
    const c = el('canvas', {role: 'img',
      'aria-label': `The 16 filters of the first layer after epoch ${e + 1}`});
    paintFilters(c, o);
    const b = button(`${e + 1}`, () => useEpoch(e + 1), {'aria-label': `epoch ${e + 1}`});
    return el('th', {scope: 'col'}, b, c);
  });
  const rows = nets[0].vocab.map(name =>
    row(name, nets.map(() => el('td', {className: 'live-shade'}))));
  const accs = about.accuracy.map(o => el('td', {}, `${Math.round(100*o)}`));
  table.replaceChildren(el('caption', {}, 'Probability of each class in %, for the image above'),
    el('thead', {}, row('epoch', heads)), el('tbody', {}, ...rows),
    el('tfoot', {}, row('accuracy, %', accs)));
}

function fillTable() { // what the network of each epoch says to the image
  const input = o => nn.normalize(inputPixels(state.image, o.size), o.size, o.stats);
  const probs = chapter.nets.map(o => nn.run(o, input(o)).probs);
  [...table.tBodies[0].rows].forEach((row, k) => probs.forEach((ps, e) => {
    row.cells[e + 1].textContent = Math.round(100*ps[k]);
    row.cells[e + 1].style.setProperty('--p', ps[k]);
  }));
  return probs.map(argmax);
}

function learn() {
  const {nets, about} = chapter;
  if (!strip) return;
  if (learn.image !== state.image) learn.best = fillTable();
  learn.image = state.image;
  const now = nets.indexOf(state.net) + 1;
  for (const row of table.rows)
    [...row.cells].forEach((o, e) => o.classList.toggle('live-now', e > 0 && e === now));
  const own = 'Your own network is shown above; the slider goes back to the chapter’s.';
  if (!now) return learned.textContent = own;
  const best = nets[0].vocab[learn.best[now - 1]], share = percent(about.accuracy[now - 1]);
  learned.textContent = `After epoch ${now} the network gets ${share} of the validation images ` +
    `right, and takes this one for: ${best}.`;
}
const argmax = xs => xs.indexOf(Math.max(...xs));

// --- draw ---
function drawing() {
  const side = 240, board = el('canvas', {width: side, height: side, className: 'live-board',
    role: 'img', 'aria-label': 'A board to draw on with mouse or finger'});
  const g = board.getContext('2d', {willReadFrequently: true});
  const pen = el('input', {type: 'color', value: '#d03030'});
  const clear = () => { g.fillStyle = '#f4f1e8'; g.fillRect(0, 0, side, side); };
  const done = () => {
    const pixels = withoutAlpha(g.getImageData(0, 0, side, side).data);
    use({pixels, w: side, h: side, name: 'your drawing', truth: ''});
  };
  let last = null;
  const point = e => [e.offsetX, e.offsetY];
  board.onpointerdown = e => {
    if (e.button || !e.isPrimary) return; // neither another button nor a second finger
    last = point(e);
    board.setPointerCapture(e.pointerId);
    board.onpointermove(e); // a dot
  };
  board.onpointermove = e => {
    if (!last || !e.isPrimary) return;
    Object.assign(g, {strokeStyle: pen.value, lineWidth: 18, lineCap: 'round'});
    g.beginPath();
    g.moveTo(...last);
    g.lineTo(...(last = point(e)));
    g.stroke();
  };
  board.onpointerup = () => { if (last) { last = null; done(); } };
  board.onpointercancel = () => { last = null; };
  clear();
  const colour = el('label', {className: 'live-pick'}, 'Colour ', pen);
  const wipe = button('Clear', () => { clear(); done(); });
  return el('details', {}, el('summary', {}, 'Draw an image'), board,
    el('div', {className: 'live-row'}, colour, wipe));
}

// --- the camera, only while it is asked for ---
const film = el('video', {className: 'live-film', muted: true, playsInline: true, hidden: true,
  'aria-label': 'What the camera sees'});
const watching = button('Use the camera', () => film.srcObject ? stopCamera() : useCamera());

let asking = false; // until the browser has its answer
async function useCamera() {
  if (asking) return;
  asking = true;
  try {
    if (!navigator.mediaDevices) throw new Error('A page may use it over https only.');
    const video = {facingMode: 'environment'}; // of a phone's two, the one on its back
    film.srcObject = await navigator.mediaDevices.getUserMedia({video});
    if (document.hidden) return stopCamera(); // the reader has left meanwhile
    await film.play();
  } catch (e) {
    stopCamera();
    return fail(`No camera. ${noCamera[e.name] ?? e.message}`);
  } finally { asking = false; }
  film.srcObject.getTracks()[0].onended = stopCamera;
  film.hidden = false;
  watching.textContent = 'Stop the camera';
  fail('');
  look();
}
const noCamera = {NotFoundError: 'This machine has none.',
  NotAllowedError: 'It was refused: the browser’s settings for this page can allow it.',
  NotReadableError: 'Another program uses it.'};

function look() { // the square in the middle of the film, a few times a second
  if (!film.srcObject) return;
  const {videoWidth: w, videoHeight: h} = film, side = Math.min(w, h);
  const g = el('canvas', {width: side, height: side}).getContext('2d', {willReadFrequently: true});
  g.drawImage(film, (w - side)/2, (h - side)/2, side, side, 0, 0, side, side);
  const pixels = withoutAlpha(g.getImageData(0, 0, side, side).data);
  use({pixels, w: side, h: side, name: 'the camera', truth: '', live: true});
  setTimeout(look, 200);
}

function stopCamera() {
  film.srcObject?.getTracks().forEach(o => o.stop());
  film.srcObject = null;
  film.hidden = true;
  watching.textContent = 'Use the camera';
}
addEventListener('pagehide', stopCamera);
document.addEventListener('visibilitychange', () => { if (document.hidden) stopCamera(); });

// --- start ---
// The page says where its files are; in a report they stand in it, as addresses that begin with
// `data:`
async function file(key) {
  const url = new URL(root.dataset[key], document.baseURI), answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname} can’t be loaded: ${answer.status}.`);
  return answer.arrayBuffer();
}

function epochs({tensors, meta}, last) { // weights of the epochs, 8 bits each and a scale a filter
  return meta.accuracy.map((_, e) => {
    if (e === meta.accuracy.length - 1) return nn.makeNetwork(last);
    const own = new Map();
    for (const name of last.tensors.keys()) {
      const x = tensors.get(`${e + 1}.${name}`), scale = tensors.get(`${e + 1}.${name}.scale`);
      const n = x.data.length/scale.data.length;
      own.set(name, nn.tensor(x.shape, x.data.map((v, i) => v*scale.data[Math.floor(i/n)])));
    }
    return nn.makeNetwork({tensors: own, meta: last.meta});
  });
}

async function readImages(truths) { // they lie side by side in one picture, each a square
  const sprite = new Blob([await file('images')], {type: 'image/png'});
  const {pixels, w, h: side} = await decode(sprite);
  return truths.map((truth, i) => {
    const own = new Uint8Array(3*side*side);
    for (let y = 0; y < side; y++) {
      const start = y*w + side*i;
      own.set(pixels.subarray(3*start, 3*(start + side)), 3*side*y);
    }
    const note = 'These are the library’s own pixels.';
    return {pixels: own, w: side, h: side, name: `validation image ${i + 1}`, truth, note};
  });
}

async function start() {
  for (const o of places) o.replaceChildren('Loading a network, about 1 MB…');
  const last = nn.readSafetensors(await file('model'));
  if (strip) {
    const kept = nn.readSafetensors(await file('epochs'));
    chapter.nets = epochs(kept, last);
    chapter.about = kept.meta;
  } else chapter.nets = [nn.makeNetwork(last)];
  const images = await readImages(chapter.about?.truth ?? JSON.parse(root.dataset.truth));
  thumbs.replaceChildren(...images.map((image, i) => {
    const c = el('canvas', {});
    paintPixels(c, image.pixels, image.w, 56);
    const label = `Image ${i + 1}: ${image.truth}`;
    const b = button(c, () => use(image), {'aria-label': label, 'aria-pressed': false});
    b.image = image;
    return b;
  }));
  const pick = el('div', {className: 'live-row'}, picker('Your photo…', 'image/*', takePhoto),
    watching, picker('Your network…', '.safetensors', takeNetwork), back);
  if (strip) {
    pick.append(el('label', {className: 'live-epoch'}, 'epoch ', sliders[0], epochNow));
    strip.replaceChildren(el('label', {className: 'live-epoch'}, 'after epoch ', sliders[1]),
      learned, el('div', {className: 'live-scroll', tabIndex: 0, role: 'region',
        'aria-label': 'Probabilities after each epoch'}, table));
    buildTable();
  }
  root.replaceChildren(thumbs, pick, drawing(), problem,
    el('p', {className: 'live-about'}, 'Or drop a photo or a model.safetensors on this page. ' +
      'Nothing leaves this machine: the page reads the file by itself and sends nothing.'), film,
    say, el('div', {className: 'live-answer'}, el('div', {}, input), probs), about, made, layers);
  state.image = images[0];
  useEpoch(chapter.nets.length);
  root.dataset.ready = 'yes';
}

document.ondragover = e => { e.preventDefault(); root.classList.add('live-over'); };
document.ondragleave = () => root.classList.remove('live-over');
document.ondrop = e => {
  e.preventDefault();
  root.classList.remove('live-over');
  if (e.dataTransfer.files[0]) take(e.dataTransfer.files[0]);
};
new ResizeObserver(paintLayers).observe(layers);
const watch = new MutationObserver(() => requestAnimationFrame(paintLayers));
for (const o of [document.documentElement, document.body])
  watch.observe(o, {attributes: true, attributeFilter: ['class', 'data-scheme']});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paintLayers);
start().catch(e => {
  for (const o of places) o.replaceChildren(`The live network can’t be shown. ${e.message}`);
});
