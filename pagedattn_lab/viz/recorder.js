// The recorder once more, for pages without a kernel: recorder/ under the names that all has there, and replay(), which makes
// a recording of operations. It follows board.js and model.js in one file.

// ---- sentences.py; counted() is plural() of board.js ---------------------------------------------------------------

const MOST_NAMED = 8;

function pool_sentence(kind, blocks) {
  const names = list_of(block_numbers(blocks)), once = unique(blocks);
  if (kind === "allocate") return `The pool hands out ${names} from the head of the free queue; no table names them yet.`;
  if (kind === "evict") return `The pool forgets the cached contents of ${names}, to hand them out again.`;
  if (kind === "touch") {
    const fetched = block_numbers(once.filter((block) => block.ref_cnt === 1));
    const parts = fetched.length ? [`${list_of(fetched)} taken out of the free queue, contents kept`] : [];
    return `Touched: ${[...parts, ...by_owners(once.filter((block) => block.ref_cnt > 1), "have")].join("; ")}.`;
  }
  return `One owner fewer: ${after_free(blocks)}.`;
}

function append_sentence(name, num_tokens, written, added, evicted) {
  const start = `${name} appends ${plural(num_tokens, "token")}`;
  if (!added.length) return `${start}: ${num_tokens === 1 ? "it fits" : "they fit"} in ${list_of(written)}.`;
  const lost = evicted.length ? `, and the pool forgets what ${list_of(evicted)} held` : "";
  return `${start} and takes ${list_of(added)} from the head of the free queue${lost}.`;
}

function copy_sentence(name, source, copy, evicted) {
  const lost = evicted.length ? ", whose old contents the pool forgets," : "";
  return (
    `${name} must not write to block ${source.block_id}, which others read too: it copies it to ` +
    `block ${copy.block_id}${lost} and lets go; ${by_owners([source], "keep")[0]}.`
  );
}

const fork_sentence = (name, blocks) => `${name} is forked off and copies nothing: ${by_owners(blocks, "have").join("; ")}.`;

function hit_sentence(name, blocks, num_tokens) {
  const fetched = block_numbers(blocks.filter((block) => block.ref_cnt === 1));
  const parts = fetched.length ? [`${list_of(fetched)} ${fetched.length === 1 ? "leaves" : "leave"} the free queue`] : [];
  parts.push(...by_owners(blocks.filter((block) => block.ref_cnt > 1), "have"));
  return `${name} finds ${plural(num_tokens, "token")} in the cache: ${parts.join("; ")}.`;
}

const skip_sentence = (name, blocks) =>
  `${name} no longer reads ${list_of(block_numbers(blocks.toReversed()))} and gives back: ${after_free(blocks)}.`;

const release_sentence = (name, blocks) =>
  `${name} gives back ${plural(blocks.length, "block")}, last first: ${after_free(blocks)}.`;

function list_of(ids) {
  if (ids.length === 1) return `block ${ids[0]}`;
  if (ids.length > MOST_NAMED) return `blocks ${ids.slice(0, 3).join(", ")} … ${ids.at(-1)} (${ids.length} of them)`;
  return `blocks ${ids.slice(0, -1).join(", ")} and ${ids.at(-1)}`;
}

function by_owners(blocks, verb) {
  const groups = new Map(), one = verb === "keep" ? "keeps" : "has";
  for (const { block_id, ref_cnt } of blocks) groups.set(ref_cnt, [...(groups.get(ref_cnt) ?? []), block_id]);
  return [...groups].map(
    ([owners, ids]) => `${list_of(ids)} ${ids.length === 1 ? one : verb} ${plural(owners, "owner")}`);
}

function after_free(blocks) {
  const once = unique(blocks), free = once.filter((block) => block.ref_cnt === 0), parts = [];
  const back = block_numbers(free.filter((block) => block.block_hash === null));
  const cached = block_numbers(free.filter((block) => block.block_hash !== null));
  if (back.length) parts.push(`${list_of(back)} ${back.length === 1 ? "returns" : "return"} to the head of the free queue`);
  if (cached.length)
    parts.push(`${list_of(cached)}, still cached, ${cached.length === 1 ? "joins" : "join"} the queue's tail`);
  return [...parts, ...by_owners(once.filter((block) => block.ref_cnt > 0), "keep")].join("; ");
}

// ---- frame.py ------------------------------------------------------------------------------------------------------

/** What one frame of a recording needs of those before it: how each name looks, and what each block last held. */
class Film {
  constructor() {
    this.looks = new Map(); // name → { colour, mark }
    this.held = new Map(); // number of a block → what it held when a table last named it
  }

  look(name) {
    const { looks } = this, marks = [...looks.values()].map((look) => look.mark);
    if (!looks.has(name)) looks.set(name, { colour: looks.size, mark: mark_for(name, marks) });
    return looks.get(name);
  }

  /** Take the present state of a pool and of the tables that are shown, by their names. */
  take(pool, shown, kind, sentence, changed = []) {
    const tables = [...shown].map(([name, { num_tokens, block_ids }]) => (
      { name, ...this.look(name), num_tokens, block_ids }));
    const cached = pool.blocks.filter((block) => block.block_hash !== null), named = new Map();
    for (const table of tables)
      table.block_ids.forEach((id, logical) => {
        const { name, colour, mark } = table, num_tokens = tokensIn(table, logical, pool.block_size);
        if (!named.has(id)) named.set(id, { name, colour, mark, logical, num_tokens });
      });
    const kept = cached.map((block) => block.block_id).filter((id) => this.held.has(id));
    this.held = new Map([...kept.map((id) => [id, this.held.get(id)]), ...named]);
    const still_there = cached.filter((block) => block.ref_cnt === 0 && this.held.has(block.block_id));
    return {
      kind, sentence, changed, tables,
      ref_cnt: pool.blocks.map((block) => block.ref_cnt),
      hashes: Object.fromEntries(cached.map((block) => [block.block_id, block.block_hash])),
      free: block_numbers(pool.free_block_queue),
      contents: Object.fromEntries(still_there.map(({ block_id }) => [block_id, this.held.get(block_id)])),
    };
  }
}

/** The shortest mark for a name that is not one of marks: its last digits, or its first letter. */
function mark_for(name, marks) {
  const number = /\p{Nd}{1,3}$/u.exec(name)?.[0], [first] = letters(name);
  const shortest = number ? [number, first + number] : [first];
  let i = 2;
  const next = () => shortest.shift() ?? `${first}${i++}`;
  let mark = next();
  while (marks.includes(mark)) mark = next();
  return mark;
}

// ---- __init__.py ---------------------------------------------------------------------------------------------------

class Recorder {
  /** Watch a pool; tables on it as [name, table], more can be added later. */
  constructor(pool, tables = []) {
    this.pool = pool;
    this.names = new Map(); // table → name
    this.shown = new Map(); // name → table, in the order in which they are drawn
    this.film = new Film();
    for (const [name, table] of tables) this.add(name, table);
    const state = `At the start, ${pool.num_free_blocks} of ${pool.num_blocks - 1} usable blocks are free.`;
    this.frames = [this.film.take(pool, this.shown, "start", state)];
    this.evicted = null; // since a table began; null while none is at work
    pool.observers.push(this);
  }

  add(name, table) {
    const known = this.names.get(table) ?? name;
    if (!name.trim()) throw new ValueError(`'${name}' is no name for a request: give a text`);
    if (known !== name) throw new ValueError(`this table is called '${known}' already: it cannot be '${name}' too`);
    for (const [other, other_name] of [...this.names]) {
      if (other_name !== name || other === table) continue;
      if (other.blocks.length)
        throw new ValueError(`another table is called '${name}' already: choose another name`);
      this.names.delete(other);
      this.shown.delete(name);
    }
    this.names.set(table, name);
    this.shown.set(name, table);
    return table;
  }

  note(sentence, blocks = []) {
    this.add_frame("note", sentence, [...blocks]);
  }

  begin(table) {
    this.evicted = [];
    this.name(table);
  }

  pool_event(kind, blocks) {
    if (this.evicted === null) this.add_frame(kind, pool_sentence(kind, blocks), block_numbers(blocks));
    else if (kind === "evict") this.evicted.push(...block_numbers(blocks));
  }

  end(kind, blocks, table, num_tokens) {
    const evicted = this.evicted ?? [], name = this.name(table), numbers = block_numbers(blocks);
    let changed = numbers, sentence;
    this.evicted = null;
    if (kind === "append") {
      const { block_size } = this.pool;
      const first = div(table.num_tokens - num_tokens, block_size), last = div(table.num_tokens - 1, block_size);
      const written = table.block_ids.slice(first, last + 1);
      changed = unique([...written, ...numbers]);
      sentence = append_sentence(name, num_tokens, written, numbers, evicted);
    } else if (kind === "copy-on-write") sentence = copy_sentence(name, ...blocks, evicted);
    else if (kind === "fork") sentence = fork_sentence(name, blocks);
    else if (kind === "hit") sentence = hit_sentence(name, blocks, num_tokens);
    else if (kind === "skip") sentence = skip_sentence(name, blocks);
    else sentence = release_sentence(name, blocks);
    this.add_frame(kind, sentence, changed);
    if (!table.blocks.length) this.shown.delete(name); // its last frame has shown it empty
  }

  /** What a player plays. */
  to_dict() {
    return { num_blocks: this.pool.num_blocks, block_size: this.pool.block_size, frames: this.frames };
  }

  add_frame(kind, sentence, changed) {
    this.frames.push(this.film.take(this.pool, this.shown, kind, sentence, changed));
  }

  /** A table's name; one that has none here comes with its own, since operations name every table. */
  name(table) {
    const name = this.names.get(table) ?? table.name;
    this.add(name, table);
    return name;
  }
}

// ---- what was done, once more --------------------------------------------------------------------------------------

/** Make a recording of operations: those that a Recorder in Python has listed, or that a reader has chosen. What each one
 * says stands in recorder/operations.py. */
function replay(operations) {
  const [[, num_blocks, block_size, first = [], state], ...rest] = operations;
  const pool = new BlockPool(num_blocks, block_size), tables = new Map();
  const blocks_of = (ids) => ids.map((id) => pool.blocks[id]);
  const holding = (num_tokens, ids, name = null) =>
    Object.assign(new BlockTable(pool, name), { num_tokens, blocks: blocks_of(ids) });
  const keep = (name, table) => tables.set(name, table).get(name);
  const named = (name) => tables.get(name) ?? keep(name, new BlockTable(pool, name));
  const parent_of = (parent) => (Array.isArray(parent) ? holding(...parent) : named(parent));
  const hash = (pairs) => pairs.forEach(([id, text]) => (pool.blocks[id].block_hash = text));

  for (const [name, ...held] of first) keep(name, holding(...held));
  if (state) {
    state.ref_cnt.forEach((count, id) => (pool.blocks[id].ref_cnt = count));
    hash(state.hashes);
    pool.free_block_queue = blocks_of(state.free);
  }
  const recorder = new Recorder(pool, tables);
  const actions = {
    add: (name, ...held) => recorder.add(name, keep(name, holding(...held))),
    append: (name, num_tokens) => named(name).append_tokens(num_tokens),
    fork: (parent, child) => keep(child, parent_of(parent).fork(child)),
    hit: (name, ids) => named(name).adopt(blocks_of(ids)),
    skip: (name, num_blocks) => named(name).remove_skipped_blocks(num_blocks),
    free: (name) => named(name).release(),
    get_new_blocks: (number) => pool.get_new_blocks(number),
    touch: (ids) => pool.touch(blocks_of(ids)),
    free_blocks: (ids) => pool.free_blocks(blocks_of(ids)),
    hash,
    note: (sentence, ids) => recorder.note(sentence, ids),
  };
  for (const [action, ...what] of rest) actions[action](...what);
  return recorder.to_dict();
}
