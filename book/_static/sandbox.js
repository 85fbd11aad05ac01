// The sandbox's page: buttons make operations, and what comes of the whole list is shown after each. It follows
// sandbox_state.js.
(() => {
  const place = document.getElementById("sandbox");
  const { modelOf, render } = window.pagedattn;
  const { BLOCK_SIZE, FAULTS, MOST, Malformed, RULES, TASKS, USABLE, audit, from_address, replayed, to_address } = sandboxState;
  const SIZE = [6, 4];
  const PACE = 700; // ms for each frame of an operation that has several
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const narrow = matchMedia("(max-width: 480px)");
  const WORDS = "you are a helpful assistant who answers"; // two requests that begin with them share a block

  const options = (pairs) => pairs.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
  const numbers = ([least, most]) => Array.from({ length: most - least + 1 }, (_, index) => [least + index, least + index]);
  const items = (texts) => Object.entries(texts).map(([key, text]) => `<li data-key="${key}"><span>${text}</span></li>`).join("");

  place.innerHTML = `
    <p class="play-error" role="alert" hidden></p>
    <fieldset class="play-row"><legend>A request</legend>
      <label>request <select data-part="request"></select></label>
      <label class="play-words">words <input data-part="words" type="text" value="${WORDS}" autocomplete="off" spellcheck="false"></label>
      <span class="play-buttons">
        <button type="button" data-part="append">Append</button>
        <button type="button" data-part="look">Look up, then append</button>
        <button type="button" data-part="fork">Fork</button>
        <button type="button" data-part="free">Free</button>
      </span>
    </fieldset>
    <div data-part="more">
    <fieldset class="play-row"><legend>Break a rule</legend>
      <label>block <select data-part="block"></select></label>
      <label>what <select data-part="fault">${options(Object.entries(FAULTS))}</select></label>
      <button type="button" data-part="break">Break it</button>
    </fieldset>
    <fieldset class="play-row"><legend>The state</legend>
      <button type="button" data-part="undo">Undo</button>
      <label>blocks <select data-part="usable">${options(numbers(USABLE))}</select></label>
      <label>words in each <select data-part="size">${options(numbers(BLOCK_SIZE))}</select></label>
      <button type="button" data-part="restart">Start over</button>
    </fieldset>
    </div>
    <div class="play-player" data-part="player"></div>
    <p class="play-told" data-part="told"></p>
    <div class="play-below">
      <section aria-labelledby="audit-title"><h2 id="audit-title">The audit</h2><ul class="play-rules" data-part="rules">${items(RULES)}</ul></section>
      <section aria-labelledby="tasks-title"><h2 id="tasks-title">To try</h2><ul class="play-tasks" data-part="tasks">${items(TASKS)}</ul>
        <p role="status" data-part="praise"></p></section>
      <section aria-labelledby="log-title"><h2 id="log-title">What was done</h2>
        <ol class="play-log" data-part="log" reversed tabindex="0" aria-labelledby="log-title"></ol></section>
    </div>`;
  const part = (name) => place.querySelector(`[data-part="${name}"]`);
  const player = part("player"), error = place.querySelector(".play-error");

  let operations, sandbox, model = null, timer = null;
  const done = new Set();

  function complain(words) {
    error.textContent = words;
    error.hidden = !words;
  }

  /** Show what comes of a list of operations. A list that cannot be played changes nothing.
   * The last operation's frames are played one by one where it is new; else, or for whom nothing should move, the last is shown. */
  function show(list, is_new = false) {
    sandbox = replayed(list);
    operations = list;
    clearInterval(timer);
    const recording = sandbox.recording(), last = recording.frames.length - 1, newest = sandbox.log.at(-1);
    const step = is_new && !still.matches ? newest.first : last;
    if (model === null) {
      model = modelOf({ ...recording, label: "The sandbox: blocks, page tables and free queue", step });
      render({ model, el: player });
      model.on("change:step", follow);
    } else {
      model.set("recording", recording);
      model.set("step", step);
    }
    follow();
    if (step < last) play_on(step, last);
    part("told").textContent = is_new && still.matches && newest.first < last ? newest.sentences.join(" ") : "";
    player.style.minHeight = `${Math.max(player.offsetHeight, parseFloat(player.style.minHeight) || 0)}px`; // never lower again
    offer();
    reward();
    const log = [...sandbox.log].reverse(); // what is new can be seen without scrolling
    part("log").style.counterReset = `done ${log.length + 1}`;
    part("log").innerHTML = log.map(({ refused }) => `<li${refused ? ' class="play-refused"' : ""}></li>`).join("");
    log.forEach(({ sentences }, index) => (part("log").children[index].textContent = sentences.join(" ")));
    part("log").scrollTop = 0;
  }

  /** Go on frame by frame, until a reader steps elsewhere. */
  function play_on(step, last) {
    timer = setInterval(() => {
      if (model.get("step") !== step) return clearInterval(timer);
      model.set("step", ++step);
      if (step === last) clearInterval(timer);
    }, PACE);
  }

  /** Beside the board, say what holds in the frame that it shows. What the audit found is not drawn as what an operation was
   * about. */
  function follow() {
    const frame = model.get("recording").frames[model.get("step")];
    player.dataset.kind = frame.kind;
    judge(frame);
  }

  /** Put into the lists what can be chosen now, and keep what is chosen where it still can be. */
  function offer() {
    const next = sandbox.next_name(), chosen = part("request").value, before = part("block").value;
    const known = [...sandbox.tables.keys()].map((name) => [name, name]);
    part("request").innerHTML = options(next ? [...known, [next, `${next} (new)`]] : known);
    if ([...part("request").options].some(({ value }) => value === chosen)) part("request").value = chosen;
    part("block").innerHTML = options(numbers([1, sandbox.pool.num_blocks - 1]));
    if (before && sandbox.pool.blocks[before]) part("block").value = before;
    [part("usable").value, part("size").value] = operations[0];
    part("undo").disabled = operations.length === 1 && document.activeElement !== part("undo"); // it must not lose the focus
  }

  function judge(frame) {
    const found = audit(frame);
    for (const item of part("rules").children) {
      const broken = found.filter(({ rule }) => rule === item.dataset.key);
      item.className = broken.length ? "play-broken" : "play-holds";
      item.querySelectorAll("em").forEach((line) => line.remove());
      item.append(...broken.map(({ words }) => Object.assign(document.createElement("em"), { textContent: `${words}.` })));
    }
  }

  function reward() {
    const news = [...sandbox.done].filter((task) => !done.has(task));
    news.forEach((task) => done.add(task));
    for (const item of part("tasks").children) item.className = done.has(item.dataset.key) ? "play-done" : "play-open";
    if (news.length) part("praise").textContent = `Done: ${news.map((task) => TASKS[task]).join(" ")}`;
  }

  /** Add an operation to the list, by the rules that an address has to keep too. */
  function add(operation, chosen = null) {
    complain("");
    try {
      show(from_address(to_address([...operations, operation])), true);
    } catch (refusal) {
      if (!(refusal instanceof Malformed)) throw refusal;
      complain(`This cannot be done: ${refusal.message}.`);
      return;
    }
    if (chosen && sandbox.tables.has(chosen)) part("request").value = chosen;
    keep();
  }

  const keep = () => history.replaceState(null, "", `#${to_address(operations)}`);

  function with_words(kind) {
    const text = part("words").value.replace(/\p{Surrogate}/gu, "\uFFFD"); // half a pair, which no address can hold
    const words = text.trim().split(/\s+/).filter(Boolean), name = part("request").value;
    if (!words.length) complain("Write some words first: each takes one slot of a block.");
    else if (words.length > MOST.words || words.some((word) => word.length > MOST.letters))
      complain(`That is too much at once: at most ${MOST.words} words of ${MOST.letters} letters.`);
    else if (!name) complain("All names are used up. Undo, free a request, or start over.");
    else add([kind, name, words], name);
  }

  /** Only a new request is looked up: say which to choose instead of one that holds blocks. */
  function look() {
    const holds = sandbox.tables.has(part("request").value), next = sandbox.next_name(), before = operations;
    with_words("look");
    if (!holds || operations === before) return;
    complain(`${sandbox.log.at(-1).sentences.at(-1)} ${next ? `Choose ${next} (new) in the list.` : "All names are used up: start over."}`);
  }

  function with_blocks(kind) {
    const name = part("request").value, next = sandbox.next_name();
    if (!sandbox.tables.has(name)) complain(`${name || "Nobody"} holds no blocks yet: append some words first.`);
    else if (kind === "free") add(["free", name]);
    else if (next === null) complain("All names are used up. Undo, or start over.");
    else add(["fork", name, next], next);
  }

  const actions = {
    append: () => with_words("append"),
    look,
    fork: () => with_blocks("fork"),
    free: () => with_blocks("free"),
    break: () => add(["break", part("fault").value, Number(part("block").value)]),
    undo() {
      if (operations.length === 1) return;
      complain("");
      show(operations.slice(0, -1));
      keep();
    },
    restart() {
      complain("");
      player.style.minHeight = "";
      show([[Number(part("usable").value), Number(part("size").value)]]);
      keep();
    },
  };
  for (const [name, action] of Object.entries(actions)) part(name).addEventListener("click", action);
  part("words").addEventListener("keydown", (event) => event.key === "Enter" && actions.append());

  /** A block or a table entry that was clicked, or has the focus when Enter is pressed, is chosen in the lists. */
  function choose({ target }) {
    const group = target.closest?.("[data-block], [data-block-of], [data-free]");
    if (!group || !player.contains(group)) return;
    const { block, blockOf, free, request } = group.dataset;
    if (Number(block ?? blockOf ?? free)) part("block").value = block ?? blockOf ?? free;
    if (request && sandbox.tables.has(request)) part("request").value = request;
  }
  player.addEventListener("click", choose);
  player.addEventListener("keydown", (event) => event.key === "Enter" && choose(event), true); // the player keeps its keys

  // A player's own button takes over from what plays by itself.
  player.addEventListener("click", ({ target }) => target.closest(".pa-controls") && clearInterval(timer));

  /** On a phone the board stands directly below the first row. */
  const arrange = () => (narrow.matches ? part("told").after(part("more")) : player.before(part("more")));
  narrow.addEventListener("change", arrange);
  arrange();

  /** Play what the address holds; what it should not hold is not played. */
  function from_page() {
    const text = location.hash.slice(1);
    const is_heading = document.getElementById(text) !== null;
    if (operations && (is_heading || text === to_address(operations))) return;
    complain("");
    try {
      show(text && !is_heading ? from_address(text) : [SIZE]);
    } catch (refusal) {
      if (!(refusal instanceof Malformed)) throw refusal;
      const kept = operations !== undefined; // what a reader has built must not go with a mistyped address
      if (!kept) show([SIZE]);
      const what = kept ? "what is here stays" : "it begins empty";
      complain(`The address holds no state of the sandbox: ${refusal.message}. So ${what}.`);
    }
  }
  window.addEventListener("hashchange", from_page);
  from_page();
})();
