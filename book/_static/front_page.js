// On the front page: a prompt fills blocks through its page table while another request does the same. The player and its
// board are those of the chapters; here they play what the model makes of a reader's words.
(() => {
  const place = document.getElementById("try-it");
  const { BlockPool, BlockTable, NoFreeBlocksError, Recorder, boardText, controlOf, modelOf, plural, render } = window.pagedattn;
  const SLOTS = 24, BLOCK_SIZES = [1, 2, 3, 4, 6, 8];
  const PROMPT = "nothing is reserved and no hole is too small to use";
  const OTHER = "where does my cache live now".split(" "); // what Bo writes meanwhile, so that blocks lie scattered
  const CONTINUATION = "because any free block will do for the next few words".split(" ");
  const NARROW = 600; // pixels
  const QUIET = 700; // ms without a change before the page says what the change led to

  /** Record how Ada's words take their slots one by one, and Bo's between them, until the memory is full. Say which word then
   * has no slot, and which frame is the last that Ada caused. */
  function recorded(words, block_size) {
    const pool = new BlockPool(SLOTS / block_size + 1, block_size), recorder = new Recorder(pool);
    const ada = new BlockTable(pool, "Ada"), bo = new BlockTable(pool, "Bo");
    let refused = null, at = 0;
    if (!words.length) recorder.note("Ada has written nothing, and holds no block."); // with one frame, there are no buttons
    try {
      words.forEach((_, index) => {
        ada.append_tokens(1);
        at = recorder.frames.length - 1;
        if (index < OTHER.length) bo.append_tokens(1);
      });
    } catch (error) {
      if (!(error instanceof NoFreeBlocksError)) throw error;
      recorder.note(`Refused: ${error.message}.`);
      refused = words[ada.num_tokens];
    }
    if (refused !== null || !words.length) at = recorder.frames.length - 1;
    return { recording: { ...recorder.to_dict(), words: { Ada: words, Bo: OTHER } }, ada, refused, at };
  }

  place.innerHTML = `
    <div class="pa-lesson-controls play-front">
      <label class="pa-lesson-control"><span>Ada's prompt</span>
        <input type="text" value="${PROMPT}" maxlength="160" autocomplete="off" spellcheck="false"></label>
      <span class="play-sizes"></span>
      <p><button type="button">Generate a word</button> <button type="button" class="play-again" hidden>Start again</button>
        <span class="play-generated"></span></p>
      <p class="play-note">One slot for each word; a tokenizer cuts a text more finely. Bo writes meanwhile. No model runs
        on this page: what is generated stands fixed.</p>
    </div>
    <div class="play-player"></div>
    <p class="play-summary" role="status"></p>`;
  const part = (selector) => place.querySelector(selector);
  const prompt = part("input[type=text]"), player = part(".play-player");
  const size = controlOf(
    { label: "Block size", kind: "slider", options: BLOCK_SIZES.map((n) => plural(n, "word")), index: 3 }, changed);
  size.row.querySelector("output").setAttribute("aria-live", "off"); // the slider says the same
  part(".play-sizes").replaceWith(size.row);

  const typed = () => prompt.value.split(/\s+/).filter(Boolean);
  const block_size = () => BLOCK_SIZES[size.index()];
  let generated = 0, waiting = null, reserved = null, made = recorded(typed(), block_size());
  const model = modelOf({ ...made.recording, label: "Ada's words fill blocks", step: made.recording.frames.length - 1 });
  render({ model, el: player });

  function summary() {
    const { blocks, num_tokens, num_empty_slots } = made.ada, slots = blocks.length * block_size();
    if (!blocks.length) return "Ada holds no block.";
    const whose = blocks.length === 1 ? "its" : "their";
    const rest = num_empty_slots ? `${num_empty_slots} of ${whose} ${plural(slots, "slot")} ${num_empty_slots === 1 ? "is" : "are"} empty` : "all slots are full";
    const lost = made.refused === null ? "" : ` “${made.refused}” has no slot.`;
    return `Ada's ${plural(num_tokens, "word")} ${num_tokens === 1 ? "fills" : "fill"} ${plural(blocks.length, "block")}; ${rest}.${lost}`;
  }

  /** What was generated, or why it goes no further. */
  function outcome() {
    const smaller = block_size() > BLOCK_SIZES[0] ? "a smaller block or " : "";
    if (made.refused !== null) return `Memory is full: “${made.refused}” has no slot. Try ${smaller}a shorter prompt.`;
    return CONTINUATION.slice(0, generated).join(" ") + (generated === CONTINUATION.length ? " (here the text ends)" : "");
  }

  const is_at_end = () => made.refused !== null || generated === CONTINUATION.length;

  /** Show what the controls say: the last frame that Ada caused where she wrote, else the frame as far on as before.
   * While a reader types, the player's sentence is not read out; when he rests, a summary is. */
  function changed(wrote = false) {
    const was_at = made.at, last = model.get("recording").frames.length - 1, step = model.get("step");
    made = recorded([...typed(), ...CONTINUATION.slice(0, generated)], block_size());
    const end = made.recording.frames.length - 1;
    part(".pa-sentence").setAttribute("aria-live", "off");
    tell();
    model.set("recording", made.recording);
    model.set("step", wrote || step === was_at ? made.at : step === last ? end : Math.min(step, end));
    reserve();
    clearTimeout(waiting);
    waiting = setTimeout(() => (part(".play-summary").textContent = summary()), QUIET);
  }

  function tell() {
    part(".play-generated").textContent = outcome();
    part("button").setAttribute("aria-disabled", String(is_at_end())); // it must not lose the focus
    part(".play-again").hidden = !(is_at_end() && generated);
  }

  function restart() {
    generated = 0;
    changed(true);
  }
  prompt.addEventListener("input", restart);
  part("button").addEventListener("click", () => {
    if (is_at_end()) return;
    generated += 1;
    changed(true);
  });
  part(".play-again").addEventListener("click", () => {
    restart();
    part("button").focus();
  });
  player.addEventListener("focusin", () => part(".pa-sentence").setAttribute("aria-live", "polite"));
  tell();
  part(".play-summary").textContent = summary();

  /** Keep the height that the tallest board needs, whatever a reader writes or chooses: what stands below must not jump.
   * On a phone boards of small blocks are tall, so there each block size keeps its own. */
  function reserve() {
    const stage = part(".pa-stage"), width = Number(stage.firstElementChild.getAttribute("width"));
    const sizes = width < NARROW ? [block_size()] : BLOCK_SIZES, now = `${width} ${sizes}`;
    if (!width || reserved === now) return;
    reserved = now;
    const full = Array(SLOTS).fill("word");
    const heights = sizes.flatMap((each) => {
      const { recording } = recorded(full, each), end = recording.frames.length - 1;
      return [0, Math.floor(end / 2), end].map((at) => Number(/ height="(\d+)"/.exec(boardText(recording, at, width))[1]));
    });
    player.style.minHeight = "";
    const around = player.offsetHeight - stage.offsetHeight;
    player.style.minHeight = `${Math.max(...heights) + around}px`;
  }
  new ResizeObserver(reserve).observe(player);
})();
