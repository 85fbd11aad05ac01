// The calculator without a kernel: what follows from its facts at a position of its controls, drawn. Letter by letter as in
// fit.py, vram.py, concurrency.py and calculator.py. It follows looks.js in one file.

const calculated = (() => {
  const GIB = 2 ** 30, BLUE = "#0072B2", ORANGE = "#E69F00", ALARM = "#b3004b";
  const WIDTH = 400, SHOWN_WIDTH = 540;
  const cdiv = (a, b) => Math.ceil(a / b);
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const commas = (number) => `${number}`.replace(/\B(?=(\d{3})+$)/g, ",");
  const decimals = (hundredths) => `${commas(div(hundredths, 100))}.${`${hundredths % 100}`.padStart(2, "0")}`;
  const gib = (size) => decimals(div(size * 100 + GIB / 2, GIB));
  const counted = (number, thing) => `${commas(number)} ${thing}${number === 1 ? "" : "s"}`;

  /** A ratio with two decimals, ties to the even one as Python has them. */
  function times(number, of) {
    let hundredths = div(number * 100, of);
    const rest = (number * 100) % of;
    if (2 * rest > of || (2 * rest === of && hundredths % 2)) hundredths += 1;
    return decimals(hundredths);
  }

  function mostBlocks([kind, blockSize, bound], tokens, inFlight) {
    if (kind === "window") return cdiv(Math.min(bound - 1 + inFlight, tokens), blockSize) + 1;
    if (kind === "chunk") return cdiv(Math.min(bound + inFlight, tokens), blockSize);
    return kind === "state" ? bound : cdiv(tokens, blockSize);
  }

  /** The blocks that a request holds while it decodes, and their slots without a token in use. */
  function heldBlocks([kind, blockSize, bound], tokens, inFlight) {
    if (kind === "state") return [bound, 0];
    const settled = Math.max(0, tokens - inFlight);
    const skipped = kind === "window" ? Math.max(0, settled - bound + 1) : kind === "chunk" ? div(settled, bound) * bound : 0;
    const blocks = cdiv(tokens, blockSize) - div(skipped, blockSize);
    return [blocks, blocks * blockSize - (tokens - skipped)];
  }

  /** The longest context that fits into so many blocks. */
  function longest(reserved, usable) {
    let low = 0, high = 2 ** 24;
    while (low < high) {
      const middle = div(low + high + 1, 2);
      if (reserved(middle) <= usable) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Tokens and bytes of a block, and the groups of layers: a GPU's kernels may ask for blocks of more. */
  function layoutOf(facts, modelAt, gpuAt, dtypeAt, sizeAt) {
    const model = facts.models[modelAt];
    return model.layouts[model.layout_of[gpuAt]][dtypeAt][sizeAt];
  }

  function workOut(facts, [modelAt, gpuAt, contextAt, dtypeAt, sizeAt, tokensAt, usersAt]) {
    const model = facts.models[modelAt], gpu = facts.gpus[gpuAt];
    const [weights, least, likely, most, fewest, many] = model.memory[gpuAt];
    const [blockSize, bytesPerBlock, groups] = layoutOf(facts, modelAt, gpuAt, dtypeAt, sizeAt);
    const wished = facts.contexts[contextAt], users = facts.users[usersAt], context = Math.min(wished, model.max_model_len);
    const tokens = Math.min(facts.tokens[tokensAt], context);
    const room = [gpu.limit - weights - likely, fewest, many];
    const numBlocks = room.map((size) => div(Math.max(0, size), bytesPerBlock)), usable = Math.max(0, numBlocks[0] - 1);
    const reserved = (length) => sum(groups.map((group) => mostBlocks(group, length, gpu.in_flight)));
    const holds = groups.map((group) => heldBlocks(group, tokens, gpu.decode_in_flight));
    const held = sum(holds.map(([blocks]) => blocks)), empty = sum(holds.map(([, slots]) => slots));
    const slots = sum(holds.map(([blocks], index) => (groups[index][0] === "state" ? 0 : blocks * groups[index][1])));
    const largestContext = longest(reserved, usable);
    const running = largestContext >= context ? Math.min(users, div(usable, held)) : 0;
    const unused = sum(holds.map(([, slots], index) => div(bytesPerBlock * slots, groups[index][1])));
    const tail = running * unused, whole = running * held * bytesPerBlock, blocksPerRequest = reserved(context);
    let parts = { used: whole - tail, tail, free: room[0] - whole };
    if (room[0] <= 0) parts = { overrun: -room[0] };
    else if (largestContext < context)
      parts = { used: room[0], usedBy: "one request", overrun: (blocksPerRequest + 1) * bytesPerBlock - room[0] };
    else if (running < users) parts.overrun = (users * held - usable) * bytesPerBlock;
    const memory = {
      title: `${model.name} on ${gpu.name}`, total: gpu.total, limit: gpu.limit, utilization: facts.utilization, weights, other: [least, likely, most],
      used: 0, usedBy: "used", tail: 0, free: 0, overrun: 0, ...parts,
    };
    return {
      memory, room, numBlocks, blockSize, bytesPerBlock, blocksPerRequest, largestContext, held, tokens, users, running,
      empty: [empty, slots], usable, context, isCut: context < wished,
      isFull: tokens < facts.tokens[tokensAt],
      fp8Capability: facts.dtypes[dtypeAt].startsWith("fp8") ? gpu.capability_without_fp8 : "",
    };
  }

  function tell(answer) {
    const { memory, room: [room], numBlocks: [blocks, fewest, many], context, usable, held, running, users } = answer;
    if (room <= 0)
      return `Weights and other memory take ${gib(memory.weights + memory.other[1])} GiB, ${gib(memory.overrun)} GiB ` +
        `more than the ${gib(memory.limit)} GiB that gpu_memory_utilization ${memory.utilization} allows. Nothing is left ` +
        "for a KV cache: vLLM does not start.";
    const about = fewest === many ? "" : ` (${commas(fewest)} to ${commas(many)}, as other memory is an estimate)`;
    const capability = answer.fp8Capability;
    const caution = capability ? ` At compute capability ${capability}, not every backend of vLLM reads an fp8 cache.` : "";
    const first = `${gib(room)} GiB for the KV cache: ${counted(blocks, "block")} of ${commas(answer.blockSize)} tokens${about}.${caution}`;
    if (answer.largestContext < context) {
      const needed = (answer.blocksPerRequest + 1) * answer.bytesPerBlock, longest = answer.largestContext;
      const fits = longest ? `The longest context that fits is ${commas(longest)}.` : "Not one token fits.";
      return `${first} One request of ${commas(context)} tokens needs ${gib(needed)} GiB, ${gib(memory.overrun)} GiB too ` +
        `much: vLLM does not start. ${fits}`;
    }
    const kvTokens = Math.trunc((blocks / answer.blocksPerRequest) * context);
    const most = answer.isCut ? ", the most that this model takes" : "";
    const logged = `vLLM logs ${commas(kvTokens)} tokens, ${times(blocks, answer.blocksPerRequest)}x at ${commas(context)}${most}.`;
    const allowed = answer.isFull ? " (the context allows no more)" : "", wanted = users * held;
    const load = `${counted(users, "request")} of ${counted(answer.tokens, "token")}${allowed}`;
    if (running < users) {
      const waiting = users - running, missing = wanted - usable;
      return `${first} ${logged} ${load}: ${commas(running)} ${running === 1 ? "runs" : "run"} and ${commas(waiting)} ` +
        `${waiting === 1 ? "waits" : "wait"}; ${counted(missing, "block")} (${gib(memory.overrun)} GiB) ` +
        `${missing === 1 ? "is" : "are"} missing.`;
    }
    const [empty, slots] = answer.empty;
    return `${first} ${logged} ${load} ${users === 1 ? "holds" : "hold"} ${commas(wanted)} of ${counted(usable, "block")}, ` +
      `${times(100 * empty, Math.max(1, slots))} % of their slots empty; ${commas(div(usable, held))} would fit.`;
  }

  const text = (body, x, y, anchor, fill = "#222", bold = false) =>
    `<text x="${x}" y="${y}" text-anchor="${anchor}" fill="${fill}"${bold ? ' font-weight="bold"' : ""}>${body}</text>`;

  /** Slanted lines across a box, rising to the right or falling. */
  function hatch(left, top, width, height, step, stroke, falls = false) {
    let lines = "";
    for (let start = step - height; start < width; start += step) {
      const first = Math.max(start, 0), last = Math.min(start + height, width);
      if (last <= first) continue;
      const low = first - start, high = last - start;
      const [begin, stop] = falls ? [top + low, top + high] : [top + height - low, top + height - high];
      lines += `M${left + first},${begin}L${left + last},${stop}`;
    }
    return `<path d="${lines}" stroke="${stroke}" fill="none"/>`;
  }

  const BAR_HEIGHT = 120, BAR = { left: 12, room: 376, top: 56, thick: 30 }, LETTER = 7, BETWEEN = 8;

  function describeMemory(memory) {
    const { other: [low, likely, high] } = memory;
    let parts = `weights ${gib(memory.weights)}, other ${gib(likely)} (${gib(low)} to ${gib(high)})`;
    if (memory.used + memory.tail + memory.free)
      parts += `, KV cache ${memory.usedBy} ${gib(memory.used)}, tail waste ${gib(memory.tail)}, free ${gib(memory.free)}`;
    parts += `, above ${memory.utilization} ${gib(memory.total - memory.limit)}`;
    if (memory.overrun) parts += `, too much ${gib(memory.overrun)}`;
    return `${memory.title}, ${gib(memory.total)} GiB: ${parts}.`;
  }

  function drawMemory(memory) {
    const { left: start, room, top, thick } = BAR;
    const cache = memory.used + memory.tail + memory.free, end = memory.limit + memory.overrun;
    const shown = Math.min(Math.max(memory.total, end), div(memory.total * 8, 5));
    const at = (size) => start + div(room * Math.min(size, shown), shown);
    const box = (left, width, fill) =>
      `<rect x="${left}" y="${top}" width="${width}" height="${thick}" fill="${fill}" stroke="#555"/>`;
    const cacheAt = memory.weights + memory.other[1];
    const edges = [0, memory.weights, cacheAt, cacheAt + memory.used, cacheAt + memory.used + memory.tail];
    const within = [...edges, memory.limit].map((edge) => at(Math.min(edge, memory.limit)));
    const looks = [[BLUE, ""], ["#d9d9d9", ""], [ORANGE, ""], ["#fbe3b0", "#222"], ["#fff", ""]];
    let drawn = "";
    looks.forEach(([fill, lines], index) => {
      const left = within[index], right = within[index + 1];
      if (right <= left) return;
      drawn += box(left, right - left, fill);
      if (lines) drawn += hatch(left, top, right - left, thick, 5, lines, true);
    });
    const limit = at(memory.limit), total = at(memory.total);
    drawn += box(limit, total - limit, "#f4f4f4") + hatch(limit, top, total - limit, thick, 4, "#aaa", true);
    if (memory.overrun) {
      const right = at(end);
      drawn += `<rect x="${limit}" y="${top - 4}" width="${right - limit}" height="${thick + 8}" fill="none" ` +
        `stroke="${ALARM}" stroke-width="2" stroke-dasharray="5 3"/>`;
      drawn += hatch(limit, top - 4, right - limit, thick + 8, 7, ALARM);
      if (end > shown) drawn += `<path d="M${right + 2},${top + 7}l8,8l-8,8z" fill="${ALARM}"/>`;
    }
    drawn += `<path d="M${total},${top - 5}v${thick + 10}" stroke="#222" stroke-width="3"/>`;
    const [low, high] = [memory.other[0], memory.other[2]].map((size) => at(memory.weights + size)), middle = top + div(thick, 2);
    const whisker = `M${low},${middle - 5}v10M${low},${middle}H${high}M${high},${middle - 5}v10`;
    if (high > low)
      drawn += `<path class="pa-arrow-edge" d="${whisker}" fill="none" stroke="#fff" stroke-width="5"/>` +
        `<path d="${whisker}" fill="none" stroke="#222" stroke-width="2"/>`;
    const [least, likely, most] = memory.other.map(gib);
    const above = [["weights", gib(memory.weights), within[0], within[1]]];
    above.push(["other", least === most ? likely : `${least}–${most}`, within[1], within[2]]);
    if (cache) above.push(["KV cache", gib(cache), within[2], within[5]]);
    above.push([`above ${memory.utilization}`, gib(memory.total - memory.limit), limit, total]);
    const below = [];
    if (cache)
      [[memory.usedBy, memory.used], ["tail waste", memory.tail], ["free", memory.free]].forEach(([name, size], index) => {
        if (size) below.push([name, gib(size), within[2 + index], within[3 + index]]);
      });
    if (memory.overrun) below.push(["too much", gib(memory.overrun), limit, at(end)]);
    drawn += text(`${escape(memory.title)}, ${gib(memory.total)} GiB`, start, 14, "start", "#222", true);
    return drawn + labels(above, top - 24, top - 11, top - 8, top) +
      labels(below, top + thick + 20, top + thick + 33, top + thick + 8, top + thick);
  }

  function labels(parts, nameY, sizeY, tick, edge) {
    const widths = parts.map(([name, size]) => LETTER * Math.max(name.length, size.length));
    const middles = parts.map(([, , left, right]) => div(left + right, 2)), places = spread(middles, widths);
    return parts.map(([name, size], index) => {
      const fill = name === "too much" ? ALARM : "#222", x = places[index];
      return `<path d="M${x},${tick}L${middles[index]},${edge}" stroke="#777" fill="none"/>` +
        text(escape(name), x, nameY, "middle", fill) + text(size, x, sizeY, "middle", fill, true);
    }).join("");
  }

  /** Labels at their middles, pushed aside as far as they need to keep clear of each other and of the edges. */
  function spread(middles, widths) {
    let end = -BETWEEN, room = WIDTH;
    const placed = middles.map((middle, index) => {
      const half = div(widths[index], 2), x = Math.max(middle, end + BETWEEN + half, half);
      end = x + half;
      return x;
    });
    for (let index = placed.length - 1; index >= 0; index--) {
      const half = div(widths[index], 2);
      placed[index] = Math.min(placed[index], room - half);
      room = placed[index] - half - BETWEEN;
    }
    return placed;
  }

  const CURVE_HEIGHT = 210, LENGTHS = Array.from({ length: 27 }, (_, half) => Math.round(2 ** ((half + 8) / 2)));
  const PLOT = { left: 48, right: 394, top: 26 }, OCTAVE = [26, 9], FIRST_X = 4, LEAST_Y = -2, MOST_Y = 16;
  const BOTTOM = PLOT.top + OCTAVE[1] * (MOST_Y - LEAST_Y), HIGH = 12;

  function place(tokens, [number, of]) {
    const octaves = number > 0 ? Math.min(Math.max(Math.log2(number / of), LEAST_Y), MOST_Y) : LEAST_Y;
    return [
      PLOT.left + Math.floor(OCTAVE[0] * (Math.log2(Math.max(tokens, 16)) - FIRST_X) + 0.5),
      PLOT.top + Math.floor(OCTAVE[1] * (MOST_Y - octaves) + 0.5),
    ];
  }

  const polyline = (curve, look) => `<polyline points="${curve.map((at) => at.join()).join(" ")}" fill="none" ${look}/>`;

  function drawConcurrency(most, held, points) {
    const { left, right, top } = PLOT, one = place(16, [1, 1])[1];
    let drawn = text("Requests at once, by the tokens of each", left, 14, "start", "#222", true);
    drawn += `<rect x="${left}" y="${one}" width="${right - left}" height="${BOTTOM - one}" fill="#f4f4f4"/>`;
    drawn += hatch(left, one, right - left, BOTTOM - one, 6, "#aaa");
    let grid = "";
    for (let power = 1; power < 9; power++) grid += `M${left},${place(16, [4 ** power, 1])[1]}H${right}`;
    for (let power = 2; power < 9; power++) grid += `M${place(4 ** power, [1, 1])[0]},${top}V${BOTTOM}`;
    drawn += `<path d="${grid}" stroke="#d9d9d9" fill="none"/>`;
    drawn += `<path d="M${left},${one}H${right}" stroke="#222" stroke-width="2"/>`;
    for (let power = 0; power < 9; power++)
      drawn += text(commas(4 ** power), left - 5, place(16, [4 ** power, 1])[1] + 4, "end");
    for (let power = 2; power < 9; power++) drawn += text(commas(4 ** power), place(4 ** power, [1, 1])[0], BOTTOM + 16, "middle");
    const curves = [most, held].map((each) => each.map((ratio, index) => place(LENGTHS[index], ratio)));
    drawn += polyline(curves[1], `stroke="${ORANGE}" stroke-width="5" stroke-opacity="0.5"`);
    drawn += polyline(curves[0], `stroke="${BLUE}" stroke-width="2"`);
    const places = points.map(({ tokens, requests }) => place(tokens, requests));
    const [[x, y], [typicalX, typicalY], [wantedX, wantedY]] = places;
    drawn += `<path d="M${typicalX},${typicalY}V${wantedY}" stroke="#222" stroke-dasharray="3 2"/>`;
    drawn += `<circle cx="${x}" cy="${y}" r="5" fill="${BLUE}" class="pa-filled" stroke="#555"/>`;
    drawn += `<path d="M${typicalX},${typicalY - 7}l7,7l-7,7l-7,-7z" fill="${ORANGE}" class="pa-filled" stroke="#555"/>`;
    drawn += `<path d="M${wantedX - 6},${wantedY}h12M${wantedX},${wantedY - 6}v12" stroke="#222" stroke-width="3"/>`;
    const taken = places.map(([x, y]) => [x - 8, y - 8, x + 8, y + 8]);
    taken.push(...curves.flat().map(([x, y]) => [x - 3, y - 3, x + 3, y + 3]));
    points.forEach(({ label }, index) => {
      const width = LETTER * label.length;
      const covered = (frame) => sum(taken.map((other) => overlap(frame, other)));
      const [frame] = candidates(...places[index], width).map((frame) => [frame, covered(frame)])
        .reduce((best, next) => (next[1] < best[1] ? next : best));
      taken.push(frame);
      drawn += `<rect x="${frame[0]}" y="${frame[1]}" width="${width}" height="${HIGH}" fill="#fff" fill-opacity="0.8"/>` +
        text(label, frame[0] + div(width, 2), frame[1] + 10, "middle");
    });
    return drawn;
  }

  /** Where the label of a point can stand, the better places first; all are inside the plot. */
  function candidates(x, y, width) {
    const found = [], half = div(width, 2), up = div(HIGH, 2);
    for (const away of [12, 26, 40]) {
      const lefts = [x + away, x - away - width, x - half, x + 4, x - width - 4], tops = [y - away - up, y + away - up];
      for (const left of lefts)
        for (const top of Math.abs(left + half - x) >= half + 8 ? [y - up, ...tops] : tops) {
          const leftIn = Math.min(Math.max(left, PLOT.left + 2), PLOT.right - width);
          const topIn = Math.min(Math.max(top, PLOT.top), BOTTOM - HIGH);
          found.push([leftIn, topIn, leftIn + width, topIn + HIGH]);
        }
    }
    return found;
  }

  function overlap(first, second) {
    const wide = Math.min(first[2], second[2]) - Math.max(first[0], second[0]);
    const high = Math.min(first[3], second[3]) - Math.max(first[1], second[1]);
    return wide > 0 && high > 0 ? wide * high : 0;
  }

  /** Which option each control stands at. The last control moves first, as in any lesson. */
  function positions({ models, gpus, contexts, dtypes, block_sizes, tokens, users }, index) {
    return [models, gpus, contexts, dtypes, block_sizes, tokens, users].reduceRight(([at, rest], { length }) =>
      [[rest % length, ...at], div(rest, length)], [[], index])[0];
  }

  /** The picture of one position, as a frame of a player. */
  function draw(facts, index) {
    const at = positions(facts, index);
    const answer = workOut(facts, at), [, , groups] = layoutOf(facts, at[0], at[1], at[3], at[4]);
    const { memory, numBlocks: [blocks], usable, held, users, tokens, context, blocksPerRequest } = answer;
    const { in_flight: inFlight, decode_in_flight: decoding } = facts.gpus[at[1]];
    const most = LENGTHS.map((length) => [blocks, sum(groups.map((group) => mostBlocks(group, length, inFlight)))]);
    const holding = LENGTHS.map((length) => [usable, sum(groups.map((group) => heldBlocks(group, length, decoding)[0]))]);
    const points = [
      { tokens: context, requests: [blocks, blocksPerRequest], label: `${times(blocks, blocksPerRequest)}x at ${commas(context)}` },
      { tokens, requests: [usable, held], label: `${commas(div(usable, held))} fit at ${commas(tokens)}` },
      { tokens, requests: [users, 1], label: `${commas(users)} wanted` },
    ];
    const curve = drawConcurrency(most, holding, points), height = BAR_HEIGHT + 8 + CURVE_HEIGHT;
    const sentence = tell(answer);
    const listed = LENGTHS.flatMap((length, index) => (index % 2 ? [] : [`${commas(length)}: ${times(...most[index])}`]));
    const alt = `${describeMemory(memory)} ${sentence} Requests at once by the tokens of each: ${listed.join(", ")}.`;
    const least = Math.ceil((WIDTH * 10) / 12); // as Picture has it: the width at which letters are 10 pixels high
    const svg = `<svg role="img" aria-label="${escape(alt)}" style="max-width:max(100%,${least}px);height:auto" ` +
      `xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${SHOWN_WIDTH}" ` +
      `height="${div(height * SHOWN_WIDTH, WIDTH)}" font-family="sans-serif" font-size="12">` +
      `<rect width="${WIDTH}" height="${height}" fill="#fff"/>${drawMemory(memory)}` +
      `<g transform="translate(0,${BAR_HEIGHT + 8})">${curve}</g></svg>`;
    return { sentence, alt, svg };
  }

  return draw;
})();
