// The sandbox's state: a list of operations, and what comes of them. Undo drops the last and plays the rest again; the page's
// address carries the list. Requests and their prefix cache are those of kv_manager.py and prefix_cache.py, except that a
// word stands for a token and that hashes are short. The audit is that of chapter 03.
const sandboxState = (() => {
  const { BlockPool, BlockTable, NoFreeBlocksError, Recorder, ValueError } = window.pagedattn;

  const NAMES = ["Ada", "Bo", "Cy", "Dan", "Eve", "Fay", "Gus", "Hal", "Ivy", "Jon", "Kim", "Leo"];
  const USABLE = [2, 12], BLOCK_SIZE = [1, 8]; // the least and the most
  const MOST = { operations: 200, words: 60, letters: 40 };
  const FAULTS = {
    give_back: "give it back too early", // while a table still names it
    count_low: "count one too few",
    count_high: "count one too many",
    queue_twice: "queue it twice",
  };
  const RULES = {
    counts: "A block's count is the number of table entries that name it.",
    double: "The free queue names a block once, and none that a table names: no double free.",
    leak: "Every block is named by a table or by the free queue: no leak.",
  };
  const TASKS = {
    copy: "Make a copy-on-write happen.",
    refused: "Make the third request, Cy, be refused.",
    found: "Let a new request find a block that nobody holds any more.",
  };

  /** What an address, or an operation in it, must not be. */
  class Malformed extends Error {}

  // FNV-1a, 32 bits, of all words up to a block's end. Equal hashes are taken for equal contents, as in the library, whose
  // hashes nobody can forge; here a reader could only fool himself.
  function hash_of(words) {
    let hash = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(words.join(" "))) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
    return hash.toString(16).padStart(8, "0");
  }

  /** Every broken invariant of a frame: which rule, which block, and in words. */
  function audit({ ref_cnt, tables, free }) {
    return ref_cnt.flatMap((count, block) => {
      if (block === 0) return []; // no operation reaches the null block
      const entries = tables.flatMap(({ name, block_ids }) =>
        block_ids.flatMap((id, logical) => (id === block ? [`${name}'s logical block ${logical}`] : [])));
      const queued = free.filter((id) => id === block).length, found = [];
      const add = (rule, words) => found.push({ rule, block, words: `block ${block}: ${words}` });
      const number = entries.length === 1 ? "1 table entry" : `${entries.length} table entries`;
      const which = entries.length ? ` (${entries.join(", ")})` : "";
      if (count !== entries.length) add("counts", `${count} counted, ${number}${which}`);
      if (queued > 1) add("double", `${queued} times in the free queue`);
      if (queued && count + entries.length) add("double", `in the free queue, and ${count} counted, ${number}`);
      if (!queued && !entries.length) add("leak", "no table names it, and the free queue does not either");
      return found;
    });
  }

  class Sandbox {
    constructor(usable, block_size) {
      this.pool = new BlockPool(usable + 1, block_size);
      this.recorder = new Recorder(this.pool);
      this.pool.observers.push(this);
      this.tables = new Map(); // of the requests that hold blocks, by name
      this.words = {}; // of all requests that there have been
      this.num_cached = {}; // of each request: blocks from the first on that the cache remembers
      this.cached = []; // [hash, block], the oldest first
      this.done = new Set(); // tasks
      this.log = []; // what each operation led to, from which frame on
    }

    /** Carry out one operation: what happened, or why it was refused, and what the audit finds then. */
    carry_out([kind, ...what]) {
      const { frames } = this.recorder, before = frames.length, frame_before = frames.at(-1);
      let refused = null;
      this.check(kind, what);
      try {
        this[kind](...what);
      } catch (error) {
        if (!(error instanceof NoFreeBlocksError || error instanceof ValueError)) throw error;
        refused = error;
        this.recorder.note(`Refused: ${error.message}.`);
      }
      this.see_hashes();
      this.notice(frames.slice(before), frame_before, refused, what[0]);
      const found = audit(frames.at(-1)), sentences = frames.slice(before).map(({ sentence }) => sentence);
      this.log.push({ first: before, sentences, refused: refused !== null });
      if (!found.length) return;
      const some = found.slice(0, 3).map(({ words }) => words), more = found.length - some.length;
      const sentence = `The audit finds ${some.join("; ")}${more ? `; and ${more} more` : ""}.`;
      this.recorder.add_frame("audit", sentence, [...new Set(found.map(({ block }) => block))]);
    }

    /** Refuse what no button offers: only an address can ask for it. */
    check(kind, [first, second]) {
      if (kind === "fork" && first === second) throw new Malformed("forks a request into itself");
      if (kind === "fork" && second !== this.next_name()) throw new Malformed(`gives a fork another name than ${this.next_name()}`);
      if (kind === "break" && second > this.pool.num_blocks - 1) throw new Malformed(`names block ${second}, which does not exist`);
      if (kind === "break" || this.tables.has(first)) return;
      if (["append", "look"].includes(kind) && first === this.next_name()) return;
      throw new Malformed(`names a request, ${first}, that does not hold blocks`);
    }

    /** The name of the next new request: none is used again, since cached blocks keep the words of those that are gone. */
    next_name() {
      return NAMES.find((name) => this.words[name] === undefined) ?? null;
    }

    append(name, words) {
      this.grow(name, words);
    }

    look(name, words) {
      if (this.tables.has(name)) throw new ValueError(`request '${name}' holds blocks already: hits are for requests without any`);
      const { block_size } = this.pool, found = [];
      // The last token is never taken from the cache: only computing it gives the logits that follow it.
      for (let end = block_size; end < words.length; end += block_size) {
        const hash = hash_of(words.slice(0, end)), entry = this.cached.find(([known]) => known === hash);
        if (entry === undefined) break;
        found.push(entry[1]);
      }
      if (!found.length) this.recorder.note(`The cache holds no block that begins as ${name} does.`);
      this.grow(name, words, found);
    }

    fork(parent, child) {
      const table = this.tables.get(parent);
      this.check_queued(table.blocks.filter((block) => block.ref_cnt === 0)); // miscounted: the pool would look for it there
      this.tables.set(child, table.fork(child));
      this.words[child] = [...this.words[parent]];
      this.num_cached[child] = this.num_cached[parent];
    }

    free(name) {
      this.tables.get(name).release();
      this.tables.delete(name);
    }

    /** What no operation of the library does: one of its rules is broken past it. */
    break(fault, block_id) {
      const { pool } = this, block = pool.blocks[block_id], queue = pool.free_block_queue;
      if (fault === "give_back") return pool.free_blocks([block]);
      if (fault === "queue_twice") {
        this.check_queued([block]);
        queue.push(block);
        return this.recorder.note(`Block ${block_id} is put into the free queue once more.`, [block_id]);
      }
      if (fault === "count_low" && block.ref_cnt === 0) throw new ValueError(`block ${block_id} has no reference to take away`);
      const counted = block.ref_cnt;
      block.ref_cnt += fault === "count_low" ? -1 : 1;
      this.recorder.note(`Block ${block_id} is counted wrongly: ${block.ref_cnt} instead of ${counted}.`, [block_id]);
    }

    check_queued(blocks) {
      for (const block of blocks)
        if (!this.pool.free_block_queue.includes(block)) throw new ValueError(`block ${block.block_id} is not in the free queue`);
    }

    /** Give a request its hits, make room for the rest of its words, and remember the blocks that they fill. */
    grow(name, added, hits = []) {
      const { pool } = this, { block_size } = pool;
      const table = this.tables.get(name) ?? new BlockTable(pool, name);
      const words = [...(this.tables.has(name) ? this.words[name] : []), ...added];
      const rest = words.length - table.num_tokens - hits.length * block_size;
      const free_hits = hits.filter((block) => block.ref_cnt === 0); // they stand in the free queue, and leave it too
      this.check_queued(free_hits);
      pool.check_free(table.num_blocks_needed(rest) + free_hits.length);
      if (hits.length) table.adopt(hits);
      table.append_tokens(rest);
      this.tables.set(name, table);
      this.words[name] = words;
      const full = Math.floor(words.length / block_size);
      for (let index = this.num_cached[name] ?? hits.length; index < full; index++) {
        const block = table.blocks[index];
        this.pool_event("evict", [block]); // a block that a broken rule gave to two requests has a hash already
        block.block_hash = hash_of(words.slice(0, (index + 1) * block_size));
        this.cached.push([block.block_hash, block]);
      }
      this.num_cached[name] = full;
    }

    /** The cache remembers blocks when their event has been told: let the event's frame show it. */
    see_hashes() {
      const { frames, film, shown } = this.recorder, { kind, sentence, changed } = frames.at(-1);
      if (kind === "append") frames[frames.length - 1] = film.take(this.pool, shown, kind, sentence, changed);
    }

    notice(frames, before, refused, name) {
      if (frames.some(({ kind }) => kind === "copy-on-write")) this.done.add("copy");
      if (refused instanceof NoFreeBlocksError && name === NAMES[2] && !this.tables.has(name)) this.done.add("refused");
      if (frames.some(({ kind, changed }) => kind === "hit" && changed.some((id) => before.ref_cnt[id] === 0))) this.done.add("found");
    }

    // As an observer of the pool: what it hands out again, the cache forgets.
    pool_event(kind, blocks) {
      if (kind === "evict") this.cached = this.cached.filter(([, block]) => !blocks.includes(block));
    }
    begin() {}
    end() {}

    /** What a player plays. */
    recording() {
      return { ...this.recorder.to_dict(), words: this.words };
    }
  }

  /** Make a sandbox of a list: its size, then operations. */
  function replayed([size, ...operations]) {
    const sandbox = new Sandbox(...size);
    operations.forEach((operation, index) => {
      try {
        sandbox.carry_out(operation);
      } catch (error) {
        if (!(error instanceof Malformed)) throw error;
        throw new Malformed(`operation ${index + 1}, “${written(operation)}”, ${error.message}`);
      }
    });
    return sandbox;
  }

  // ---- the address: 6x4/append:Ada:you+are/fork:Ada:Bo/free:Ada/break:give_back:1 -----------------------------------

  const written = ([kind, ...what]) =>
    [kind, ...what.map((part) => (Array.isArray(part) ? part.map(encodeURIComponent).join("+") : part))].join(":");
  const to_address = ([size, ...operations]) => [size.join("x"), ...operations.map(written)].join("/");

  const within = (number, [least, most]) => number >= least && number <= most;
  const is_name = (text) => NAMES.includes(text);

  function words_of(text) {
    const words = text.split("+").map(decodeURIComponent);
    const fit = words.length <= MOST.words && words.every((word) => /^\S+$/.test(word) && word.length <= MOST.letters);
    if (!fit) throw new Malformed("does not hold words");
    return words;
  }

  function read(text) {
    const [kind, first, second, ...others] = text.split(":");
    if (others.length) throw new Malformed("has too many parts");
    const lacks = (kind === "free") !== (second === undefined);
    if (kind === "break" && Object.hasOwn(FAULTS, first) && /^[1-9]\d?$/.test(second)) return [kind, first, Number(second)];
    if (!["append", "look", "fork", "free"].includes(kind) || !is_name(first) || lacks) throw new Malformed("is no operation");
    if (kind === "free") return [kind, first];
    if (kind !== "fork") return [kind, first, words_of(second)];
    if (!is_name(second)) throw new Malformed("is no operation");
    return [kind, first, second];
  }

  /** Read a list of operations from an address; nothing of it is carried out yet. */
  function from_address(text) {
    const [size, ...operations] = text.split("/"), numbers = /^(\d{1,2})x(\d{1,2})$/.exec(size)?.slice(1).map(Number);
    if (!numbers || !within(numbers[0], USABLE) || !within(numbers[1], BLOCK_SIZE))
      throw new Malformed(`it begins with “${size.slice(0, 20)}”, and not with a number of blocks and a block size, such as 6x4`);
    if (operations.length > MOST.operations) throw new Malformed(`it has more than ${MOST.operations} operations`);
    return [numbers, ...operations.map((operation, index) => {
      try {
        return read(operation);
      } catch (error) {
        if (!(error instanceof Malformed || error instanceof URIError)) throw error;
        const why = error instanceof URIError ? "does not hold words" : error.message;
        throw new Malformed(`operation ${index + 1}, “${operation.slice(0, 40)}”, ${why}`);
      }
    })];
  }

  return { BLOCK_SIZE, FAULTS, MOST, Malformed, RULES, TASKS, USABLE, audit, from_address, replayed, to_address };
})();
