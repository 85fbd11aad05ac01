// The server's memory once more, for pages without a kernel: block_pool.py and block_table.py, under the names that all has
// there. recorder.js records it. Random histories are replayed in both languages, and every frame compared.
//
// Left out is what no recording shows: tensors, and so the copies that wait to be carried out. The free queue is an array,
// since pictures have tens of blocks; the linked list of block_pool.py is for a server's thousands.

class NoFreeBlocksError extends Error {}
class ValueError extends Error {}

const cdiv = (a, b) => Math.ceil(a / b);
const unique = (values) => [...new Set(values)];
const block_numbers = (blocks) => blocks.map((block) => block.block_id);

// ---- block_pool.py -------------------------------------------------------------------------------------------------

class BlockPool {
  constructor(num_blocks, block_size) {
    if (num_blocks < 2)
      throw new ValueError(`num_blocks is ${num_blocks}: a pool needs at least 2, since block 0 is the null block`);
    if (block_size < 1) throw new ValueError(`block_size is ${block_size}: a block holds at least 1 token`);
    this.block_size = block_size;
    this.blocks = Array.from({ length: num_blocks }, (_, block_id) => ({ block_id, ref_cnt: 0, block_hash: null }));
    this.free_block_queue = this.blocks.slice(1); // in the order in which they will be handed out
    this.observers = [];
  }

  get num_blocks() {
    return this.blocks.length;
  }

  get num_free_blocks() {
    return this.free_block_queue.length;
  }

  check_free(num_blocks) {
    const free = this.num_free_blocks, usable = this.num_blocks - 1;
    if (num_blocks > free)
      throw new NoFreeBlocksError(`cannot allocate ${num_blocks} blocks: ${free} of ${usable} are free`);
  }

  /** Hand out blocks from the head of the queue. What still carried the hash of old contents loses it here. */
  get_new_blocks(num_blocks) {
    this.check_free(num_blocks);
    const new_blocks = this.free_block_queue.splice(0, num_blocks);
    const evicted = new_blocks.filter((block) => block.block_hash !== null);
    for (const block of new_blocks) Object.assign(block, { ref_cnt: 1, block_hash: null });
    if (evicted.length) this.tell("evict", evicted);
    if (new_blocks.length) this.tell("allocate", new_blocks);
    return new_blocks;
  }

  /** Add one owner to each block; a free block leaves the queue with its contents. */
  touch(blocks) {
    this.check_own(blocks);
    for (const block of blocks) {
      if (block.ref_cnt === 0) this.free_block_queue.splice(this.free_block_queue.indexOf(block), 1);
      block.ref_cnt += 1;
    }
    if (blocks.length) this.tell("touch", blocks);
  }

  /** Take one owner from each. Those without any go to the queue: cached ones to its tail, others to its head. */
  free_blocks(ordered_blocks) {
    this.check_held(ordered_blocks);
    const reusable = [], cached = [];
    for (const block of ordered_blocks) {
      block.ref_cnt -= 1;
      if (block.ref_cnt === 0) (block.block_hash === null ? reusable : cached).push(block);
    }
    this.free_block_queue = [...reusable, ...this.free_block_queue, ...cached];
    if (ordered_blocks.length) this.tell("free", ordered_blocks);
  }

  check_own(blocks) {
    if (blocks.includes(this.blocks[0]))
      throw new ValueError("block 0 is the null block: it has no owners, so it cannot be touched or freed");
  }

  check_held(blocks) {
    this.check_own(blocks);
    for (const block of unique(blocks)) {
      const times = blocks.filter((other) => other === block).length;
      if (times > block.ref_cnt)
        throw new ValueError(
          `double free of block ${block.block_id}: freed ${times} time(s), held by ${block.ref_cnt} owner(s)`);
    }
  }

  tell(kind, blocks) {
    for (const observer of this.observers) observer.pool_event(kind, blocks);
  }
}

// ---- block_table.py ------------------------------------------------------------------------------------------------

class BlockTable {
  constructor(pool, name = null) {
    Object.assign(this, { pool, name, blocks: [], num_tokens: 0 });
  }

  get block_ids() {
    return block_numbers(this.blocks);
  }

  get num_empty_slots() {
    return this.blocks.length * this.pool.block_size - this.num_tokens;
  }

  get must_copy() {
    return this.num_empty_slots > 0 && this.blocks.at(-1).ref_cnt > 1;
  }

  num_blocks_needed(num_tokens) {
    if (num_tokens < 0) throw new ValueError(`cannot append ${num_tokens} tokens: give 0 or more`);
    const missing = Math.max(0, num_tokens - this.num_empty_slots);
    return cdiv(missing, this.pool.block_size) + (num_tokens > 0 && this.must_copy ? 1 : 0);
  }

  append_tokens(num_tokens) {
    const num_blocks = this.num_blocks_needed(num_tokens);
    this.pool.check_free(num_blocks);
    if (num_tokens === 0) return [];
    const copied = this.must_copy ? [this.copy_on_write()] : [];
    this.begin();
    const added = this.pool.get_new_blocks(num_blocks - copied.length);
    this.blocks.push(...added);
    this.num_tokens += num_tokens;
    this.end("append", added, num_tokens);
    return [...copied, ...added];
  }

  /** Put a new block in the place of the last one, which other tables name too. */
  copy_on_write() {
    const source = this.blocks.at(-1);
    this.begin();
    const [copy] = this.pool.get_new_blocks(1);
    this.blocks[this.blocks.length - 1] = copy;
    this.pool.free_blocks([source]);
    this.end("copy-on-write", [source, copy]);
    return copy;
  }

  /** Begin an empty table with full blocks that hold its first tokens already: a hit in the prefix cache. */
  adopt(blocks) {
    if (this.blocks.length)
      throw new ValueError(`a table of ${this.num_tokens} tokens cannot adopt blocks: only an empty one can`);
    const found = this.held(blocks);
    this.pool.check_own(found);
    if (!blocks.length) return;
    this.begin();
    this.pool.touch(found);
    Object.assign(this, { blocks: [...blocks], num_tokens: blocks.length * this.pool.block_size });
    this.end("hit", found, this.num_tokens);
  }

  /** Give the first blocks back, last first, and name the null block in their places. */
  remove_skipped_blocks(num_blocks) {
    const freed = this.held(this.blocks.slice(0, num_blocks)).toReversed();
    this.pool.check_held(freed);
    if (!freed.length) return;
    this.begin();
    this.pool.free_blocks(freed);
    this.blocks = this.blocks.map((block, logical) => (logical < num_blocks ? this.pool.blocks[0] : block));
    this.end("skip", freed);
  }

  /** All but the null block. */
  held(blocks) {
    return blocks.filter((block) => block !== this.pool.blocks[0]);
  }

  fork(name = null) {
    const child = new BlockTable(this.pool, name);
    if (!this.blocks.length) return child;
    child.begin();
    this.pool.touch(this.blocks);
    Object.assign(child, { blocks: [...this.blocks], num_tokens: this.num_tokens });
    child.end("fork", child.blocks);
    return child;
  }

  release() {
    const freed = this.held(this.blocks).toReversed();
    this.pool.check_held(freed);
    if (!this.blocks.length) return;
    this.begin();
    this.pool.free_blocks(freed);
    Object.assign(this, { blocks: [], num_tokens: 0 });
    this.end("free", freed);
  }

  begin() {
    for (const observer of this.pool.observers) observer.begin(this);
  }

  end(kind, blocks, num_tokens = 0) {
    for (const observer of this.pool.observers) observer.end(kind, blocks, this, num_tokens);
  }
}
