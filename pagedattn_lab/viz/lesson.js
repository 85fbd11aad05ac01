// A lesson without a kernel: its controls, and what it shows at each of their positions, which lesson.py has stored. It
// follows recorder.js, calculator.js and player.js in one file.

/** Undo what grid.py did: a list of everything that a lesson can show, packed. */
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(unzipped).json();
}

/** What one position shows: a recording made of its operations, pictures put together of their pieces, or one drawn anew. */
function shownAt({ pieces, shown, calculator }, index) {
  if (calculator) return { frames: [calculated(calculator, index)] };
  const { ops, words, error, frames } = shown[index];
  if (error) return { error };
  if (ops) return { ...replay(ops), words };
  return { frames: frames.map((frame) => ({ ...frame, svg: frame.svg.map((number) => pieces[number]).join("") })) };
}

let controlsMade = 0; // controls of this page: each needs an id of its own, by which its label finds it

/** A slider or a list, with its label and where it stands. */
function controlOf({ label, kind, options, index }, moved) {
  const row = document.createElement("div"), id = `pa-control-${(controlsMade += 1)}`;
  row.className = "pa-lesson-control";
  const name = Object.assign(document.createElement("label"), { textContent: label, htmlFor: id });
  if (kind === "list") {
    const list = Object.assign(document.createElement("select"), { id });
    list.append(...options.map((text) => new Option(text)));
    list.selectedIndex = index;
    list.addEventListener("change", moved);
    row.append(name, list);
    return { row, index: () => list.selectedIndex };
  }
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: options.length - 1, id });
  const value = document.createElement("output");
  const say = () => {
    value.textContent = options[slider.value];
    slider.setAttribute("aria-valuetext", options[slider.value]);
  };
  slider.value = index;
  slider.addEventListener("input", () => {
    say();
    moved();
  });
  say();
  row.append(name, slider, value);
  return { row, index: () => Number(slider.value) };
}

/** The controls of a lesson, which show in a player what belongs to their positions. */
function controlsOf({ controls }, recordings, model, clean) {
  const root = document.createElement("div");
  root.className = "pa-lesson-controls";
  let all = null; // unpacked when somebody first moves a control

  async function moved() {
    all ??= unpack(recordings);
    const stored = await all, at = rows.reduce((sum, row, i) => sum * controls[i].options.length + row.index(), 0);
    root.dataset.shown = at;
    const { error = "", ...made } = shownAt(stored, at);
    if (error) return model.set("error", error); // the player says that it still shows what was before
    const last = model.get("recording").frames.length - 1, recording = clean(made);
    const end = recording.frames.length - 1;
    const step = model.get("step") === last ? end : Math.min(model.get("step"), end); // as Player.play does
    model.change({ error, recording, step });
  }

  const rows = controls.map((control) => controlOf(control, moved));
  root.append(...rows.filter((_, i) => controls[i].options.length > 1).map(({ row }) => row));
  const coarse = controls.filter(({ options, of }) => of > options.length);
  if (coarse.length) {
    const counts = coarse.map(({ label, options, of }) =>
      options.length === 1 ? `${label} at ${options[0]} only` : `${label} at ${options.length} of ${of} values`);
    const words = `Stored for this page: ${counts.join(", ")}. In JupyterLab, any value.`;
    root.append(Object.assign(document.createElement("p"), { textContent: words }));
  }
  return root;
}

/** Play a stored output: its recording, below the controls if it has any. Returns a function that stops. */
function playStored(data, el, clean = (made) => made) {
  const model = modelOf(data);
  if (data.grid) {
    el.classList.add("pa-lesson");
    el.append(controlsOf(data.grid, data.recordings, model, clean));
  }
  return render({ model, el });
}
