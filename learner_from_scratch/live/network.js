// The library's networks in plain JavaScript: a file of weights, its layers, and what they
// make of an image. Nothing here knows of the page; page.js shows it.
// A tensor is an object of its shape and its numbers, row by row.

const size = shape => shape.reduce((a, b) => a*b, 1);
export const tensor = (shape, data = new Float32Array(size(shape))) => ({shape, data});

// --- the file: 8 bytes with the length of a header, the header in JSON, the numbers ---
const bytes = {F32: 4, F16: 2, I8: 1, I64: 8};

export function halfToFloat(h) {
  const sign = h & 0x8000 ? -1 : 1, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent === 0) return sign * fraction * 2**-24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction/1024) * 2**(exponent - 15);
}

function numbers(buffer, start, dtype, n) {
  if (dtype === 'I8') return Float32Array.from(new Int8Array(buffer, start, n));
  const view = new DataView(buffer, start), data = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    if (dtype === 'F32') data[i] = view.getFloat32(4*i, true);
    if (dtype === 'F16') data[i] = halfToFloat(view.getUint16(2*i, true));
    if (dtype === 'I64') data[i] = Number(view.getBigInt64(8*i, true));
  }
  return data;
}

function parse(text, what) {
  let res = null;
  try { res = JSON.parse(text); } catch { /* null says it */ }
  if (typeof res !== 'object' || res === null || Array.isArray(res))
    throw new Error(`${what} is not JSON with names and values, so this is no model file.`);
  return res;
}

export function readSafetensors(buffer) {
  const total = buffer.byteLength;
  if (total < 8) throw new Error(`It has ${total} bytes, and a model file begins with 8 that ` +
    'tell the length of its header.');
  const length = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + length;
  if (start > total) throw new Error('Its first 8 bytes promise a header that is longer than ' +
    'the file: it is cut off, or no safetensors file.');
  const text = new TextDecoder().decode(new Uint8Array(buffer, 8, length));
  const {__metadata__: words, ...header} = parse(text, 'Its header');

  const tensors = new Map(), entries = Object.entries(header);
  const begin = o => o[1]?.data_offsets?.[0] ?? 0;
  entries.sort((a, b) => begin(a) - begin(b));
  let end = 0;
  for (const [name, o] of entries) {
    const {dtype, shape, data_offsets: place} = o ?? {};
    if (!(dtype in bytes)) throw new Error(`Its ${name} has numbers of type ${dtype}, and ` +
      `this page reads ${Object.keys(bytes).join(', ')}.`);
    const whole = Array.isArray(shape) && shape.every(n => Number.isSafeInteger(n) && n >= 0);
    const fits = whole && place?.[0] === end && place?.[1] === end + size(shape)*bytes[dtype];
    if (!fits) throw new Error(`It is damaged: shape and place of ${name} don't agree.`);
    end = place[1];
    if (start + end > total) throw new Error(`It is cut off: ${name} goes on after its end.`);
    tensors.set(name, tensor(shape, numbers(buffer, start + place[0], dtype, size(shape))));
  }
  if (start + end !== total)
    throw new Error(`It is damaged: ${total - start - end} bytes follow the last number.`);
  return {tensors, meta: words?.meta === undefined ? {} : parse(words.meta, 'Its `meta`')};
}

// --- layers: what each one is can be told from names and shapes ---
const archs = ['simple_cnn', 'small_resnet', 'resnet18'];

function checkMeta(meta) {
  const missing = ['vocab', 'size', 'stats', 'arch'].filter(k => !(k in meta));
  if (missing.length) throw new Error(`It holds weights alone, without ${missing.join(', ')}.`);
  const {vocab, size, stats} = meta, arch = String(meta.arch).split(':').pop();
  if (!archs.includes(arch)) throw new Error(`It needs the architecture ${meta.arch}, and this ` +
    `page knows ${archs.join(', ')}.`);
  const {task = 'OneLabel', channels = 3, resize = 'squeeze'} = meta; // older files don't say
  if (task !== 'OneLabel') throw new Error(`Its task is ${task}, and this page knows networks ` +
    'that choose one of several classes.');
  if (channels !== 3) throw new Error('Its images are grey, and this page takes colours.');
  if (resize !== 'squeeze') throw new Error(`Its images get their size by ${resize}, and this ` +
    'page squeezes them.');
  if (!Array.isArray(vocab) || !vocab.length || !vocab.every(o => typeof o === 'string'))
    throw new Error('Its vocabulary is not a list of class names.');
  if (!Number.isInteger(size) || size < 1 || size > 512)
    throw new Error(`Its images have ${size} pixels a side, and this page takes 1 to 512.`);
  const three = o => Array.isArray(o) && o.length === 3 && o.every(Number.isFinite);
  if (!Array.isArray(stats) || stats.length !== 2 || !stats.every(three) ||
      !stats[1].every(o => o > 0))
    throw new Error('Its statistics are not 3 means and 3 deviations above 0.');
  return {vocab, size, stats, arch};
}

function tree(tensors) { // names such as 2.conv1.w as objects in objects
  const root = {};
  for (const [name, t] of tensors) {
    const path = name.split('.'), last = path.pop();
    let node = root;
    for (const o of path) node = Object.hasOwn(node, o) ? node[o] : node[o] = {};
    node[last] = t;
  }
  return root;
}

const inOrder = new Intl.Collator('en', {numeric: true}).compare;
function children(node) { // conv1 comes before bn1, fc is the last, numbers in their order
  const place = k => ({conv1: 1, bn1: 2, fc: 9})[k] ?? 3;
  const names = Object.keys(node).filter(k => !(node[k].data instanceof Float32Array));
  return names.sort((a, b) => place(a) - place(b) || inOrder(a, b));
}

// A convolution to more channels halves the image, one that keeps their number doesn't
function convStep(node) {
  const [nf, ni] = node.w.shape;
  return {op: 'conv', w: node.w, b: node.b, stride: nf === ni ? 1 : 2};
}
const normStep = node => ({op: 'norm', ...node});

function build(node, name, layers) {
  const add = (...steps) => layers.push({name, steps});
  const shape = node.w?.shape ?? [];
  if (shape.length === 4) { // followed by ReLU, or by a BatchNorm that brings it
    add(convStep(node), ...(node.b ? [{op: 'relu'}] : []));
    if (shape[2] === 7) layers.at(-1).pool = true; // ResNet-18 goes on with a max pool
  } else if (node.running_mean) {
    const last = layers.at(-1);
    last.steps.push(normStep(node), {op: 'relu'});
    if (last.pool) last.steps.push({op: 'maxpool'});
  } else if (shape.length === 2) {
    layers.push({name: '', steps: [{op: 'mean'}]});
    add({op: 'linear', w: node.w, b: node.b});
  } else if (node.conv2) { // a residual block is two layers, and the second adds the input
    const down = node.downsample;
    const shortcut = down ? [convStep(down[0]), normStep(down[1])] : [];
    layers.push({name: `${name}.conv1`,
      steps: [convStep(node.conv1), normStep(node.bn1), {op: 'relu'}]});
    layers.push({name: `${name}.conv2`, steps: [convStep(node.conv2), normStep(node.bn2),
      {op: 'add', back: 2, shortcut}, {op: 'relu'}]});
  } else for (const k of children(node)) build(node[k], name ? `${name}.${k}` : k, layers);
}

const there = o => o?.data instanceof Float32Array;

function checkParts(arch, layers, fail) { // that no bias and no BatchNorm is missing
  const plain = arch === 'simple_cnn'; // the others have a BatchNorm behind each convolution
  for (const {name, steps} of layers) {
    const all = steps.flatMap(s => [s, ...(s.shortcut ?? [])]);
    all.forEach((s, i) => {
      const normed = all[i + 1]?.op === 'norm';
      if (s.op === 'conv' && plain && normed) fail(`${name} has a BatchNorm`);
      if (s.op === 'conv' && !plain && !normed) fail(`the BatchNorm of ${name} is missing`);
      const bias = s.op === 'linear' || plain && s.op === 'conv';
      if (bias && !there(s.b)) fail(`the bias of ${name} is missing`);
      if (s.op !== 'norm') return;
      for (const k of ['running_mean', 'running_var', 'w', 'b'])
        if (!there(s[k])) fail(`${k} of a BatchNorm of ${name} is missing`);
    });
  }
}

export function makeNetwork({tensors, meta}) {
  const known = checkMeta(meta), layers = [];
  try { build(tree(tensors), '', layers); } catch { layers.length = 0; }
  const net = {...known, layers, weights: 0};
  for (const t of tensors.values()) net.weights += t.data.length;
  const fail = why => { throw new Error(`Its weights don't make a ${known.arch}: ${why}.`); };
  if (layers.at(-1)?.steps[0].op !== 'linear') fail('the linear layer at the end is missing');
  checkParts(known.arch, layers, fail);
  let channels = 3;
  for (const {name, steps} of layers) for (const s of steps) {
    if (s.op === 'norm' && s.running_mean.data.length !== channels) fail(`${name} doesn't fit`);
    if (!['conv', 'linear'].includes(s.op)) continue;
    if (s.w.shape[1] !== channels) fail(`${name} doesn't fit the layer before`);
    channels = s.w.shape[0];
    if (s.b && s.b.data.length !== channels) fail(`the bias of ${name} doesn't fit`);
  }
  if (channels !== known.vocab.length)
    fail(`it has ${channels} outputs for ${known.vocab.length} classes`);
  const answer = run(net, tensor([3, known.size, known.size]));
  if (!answer.probs.every(Number.isFinite))
    throw new Error('It answers NaN: its weights are damaged.');
  return net;
}

// --- what the layers do ---
function pad(x, n, value = 0) { // a border of n pixels
  const [c, h, w] = x.shape, out = tensor([c, h + 2*n, w + 2*n]);
  if (value) out.data.fill(value);
  for (let k = 0; k < c; k++) for (let i = 0; i < h; i++) {
    const row = x.data.subarray((k*h + i)*w, (k*h + i + 1)*w);
    out.data.set(row, (k*(h + 2*n) + i + n)*(w + 2*n) + n);
  }
  return out;
}

// begin conv
export function conv(x, w, b, stride) {
  const [nf, ni, k] = w.shape, padded = pad(x, k >> 1);
  const [, h, wide] = padded.shape;
  const oh = Math.floor((h - k)/stride) + 1, ow = Math.floor((wide - k)/stride) + 1;
  const out = tensor([nf, oh, ow]), n = ni*k*k;
  const pixels = padded.data, weights = w.data, seen = new Float32Array(n);
  for (let i = 0; i < oh; i++)
    for (let j = 0; j < ow; j++) {
      let p = 0; // what the window sees at this place, in one row
      for (let c = 0; c < ni; c++)
        for (let di = 0; di < k; di++) {
          const start = (c*h + i*stride + di)*wide + j*stride;
          for (let dj = 0; dj < k; dj++) seen[p++] = pixels[start + dj];
        }
      for (let f = 0; f < nf; f++) {
        let sum = b ? b.data[f] : 0;
        for (let p = 0; p < n; p++) sum += seen[p] * weights[f*n + p];
        out.data[(f*oh + i)*ow + j] = sum;
      }
    }
  return out;
}
// end conv

export const relu = x => tensor(x.shape, x.data.map(v => v < 0 ? 0 : v)); // NaN stays NaN

export function norm(x, {running_mean, running_var, w, b}) {
  const [c, h, wide] = x.shape, n = h*wide, out = tensor(x.shape);
  for (let k = 0; k < c; k++) {
    const scale = w.data[k] / Math.sqrt(running_var.data[k] + 1e-5);
    for (let i = k*n; i < (k + 1)*n; i++)
      out.data[i] = (x.data[i] - running_mean.data[k])*scale + b.data[k];
  }
  return out;
}

export function maxpool(x) { // 3×3, with step 2
  const padded = pad(x, 1, -Infinity), [c, h, wide] = padded.shape;
  const oh = Math.floor((h - 3)/2) + 1, ow = Math.floor((wide - 3)/2) + 1;
  const out = tensor([c, oh, ow]);
  for (let k = 0; k < c; k++) for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++) {
    let most = -Infinity;
    for (let di = 0; di < 3; di++) for (let dj = 0; dj < 3; dj++)
      most = Math.max(most, padded.data[(k*h + 2*i + di)*wide + 2*j + dj]);
    out.data[(k*oh + i)*ow + j] = most;
  }
  return out;
}

export function mean(x) {
  const [c, h, wide] = x.shape, n = h*wide, out = tensor([c]);
  for (let k = 0; k < c; k++)
    out.data[k] = x.data.subarray(k*n, (k + 1)*n).reduce((a, b) => a + b, 0)/n;
  return out;
}

export function linear(x, w, b) {
  const [nf, ni] = w.shape, out = tensor([nf]);
  for (let f = 0; f < nf; f++) {
    let sum = b.data[f];
    for (let c = 0; c < ni; c++) sum += x.data[c]*w.data[f*ni + c];
    out.data[f] = sum;
  }
  return out;
}

export function softmax(scores) {
  const most = Math.max(...scores), es = [...scores].map(o => Math.exp(o - most));
  const sum = es.reduce((a, b) => a + b, 0);
  return es.map(o => o/sum);
}

function step(s, x, block) {
  if (s.op === 'conv') return conv(x, s.w, s.b, s.stride);
  if (s.op === 'norm') return norm(x, s);
  if (s.op === 'relu') return relu(x);
  if (s.op === 'maxpool') return maxpool(x);
  if (s.op === 'mean') return mean(x);
  if (s.op === 'linear') return linear(x, s.w, s.b);
  const short = s.shortcut.reduce((o, t) => step(t, o), block);
  return tensor(x.shape, x.data.map((v, i) => v + short.data[i]));
}

export function run(net, input) { // what each step of each layer gives, and the answer
  const outputs = [], inputs = [];
  let x = input;
  for (const {steps} of net.layers) {
    inputs.push(x);
    outputs.push(steps.map(s => x = step(s, x, s.back && inputs.at(-s.back))));
  }
  return {input, inputs, outputs, scores: x.data, probs: softmax(x.data)};
}

// --- pixels: red, green and blue of each pixel, as the library's `square` makes them ---
export function normalize(pixels, side, [means, stds]) {
  const out = tensor([3, side, side]), n = side*side;
  for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++)
    out.data[c*n + i] = (pixels[3*i + c]/255 - means[c])/stds[c];
  return out;
}

// The weights by which Pillow's BILINEAR shrinks or widens a line, in steps of 2**-22
function resizeWeights(from, to) {
  const scale = from/to, reach = Math.max(scale, 1), nearer = 1/reach;
  return Array.from({length: to}, (_, i) => {
    const center = (i + .5)*scale;
    const lo = Math.max(0, Math.trunc(center - reach + .5));
    const hi = Math.min(from, Math.trunc(center + reach + .5)), ws = [];
    for (let j = lo; j < hi; j++) ws.push(Math.max(0, 1 - Math.abs((j - center + .5)*nearer)));
    const share = 1/ws.reduce((a, b) => a + b, 0);
    return {lo, ws: ws.map(o => Math.floor(o*share*2**22 + .5))};
  });
}

function resizeLines(src, lines, from, to, stepIn, stepLine) { // along one axis
  if (from === to) return src;
  const out = new Uint8Array(src.length/from*to), weights = resizeWeights(from, to);
  const across = stepIn === 3; // pixels of a line lie side by side
  for (let l = 0; l < lines; l++) for (let i = 0; i < to; i++) {
    const {lo, ws} = weights[i], at = across ? 3*(l*to + i) : 3*(i*lines + l);
    for (let c = 0; c < 3; c++) {
      let sum = 2**21, j = l*stepLine + lo*stepIn + c;
      for (const w of ws) { sum += src[j]*w; j += stepIn; }
      out[at + c] = sum >> 22;
    }
  }
  return out;
}

export function resize(pixels, w, h, side) { // to a square: first the rows, then the columns
  const narrow = resizeLines(pixels, h, w, side, 3, 3*w);
  return resizeLines(narrow, side, h, side, 3*side, 3);
}

// The library lets the JPEG decoder skip work: blocks of n×n pixels become their mean
export function jpegDraft(pixels, w, h, side) {
  const n = [8, 4, 2].find(o => Math.min(Math.floor(w/side), Math.floor(h/side)) >= o) ?? 1;
  const ow = Math.ceil(w/n), oh = Math.ceil(h/n), out = new Uint8Array(3*ow*oh);
  for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++) for (let c = 0; c < 3; c++) {
    let sum = 0, k = 0;
    for (let y = n*i; y < Math.min(h, n*i + n); y++)
      for (let x = n*j; x < Math.min(w, n*j + n); x++, k++) sum += pixels[3*(y*w + x) + c];
    out[3*(i*ow + j) + c] = Math.round(sum/k);
  }
  return {pixels: out, w: ow, h: oh};
}
