// Guesses in the built book: a box in place of each line of Python, its value kept in this browser.
// It compares in the same words as pagedattn_lab/exercises/guesses.py; tests/browser/test_guess_boxes.py holds them together.
(() => {
  const { kept, keep } = window.readersMemory;
  const NUMBER = /^[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)$/;
  const rounded = (value, digits) => Number(value.toPrecision(digits));
  const plain = (word) => word.replace(/^[ .]+|[ .]+$/g, "").toLowerCase();

  function shown(value) {
    const number = Number.isInteger(value) ? value : rounded(value, 4);
    return (number || 0).toLocaleString("en-US", { maximumFractionDigits: 20 }); // no minus before a zero
  }

  function answer({ kind, outcome, unit }) {
    const number = typeof outcome === "string" ? outcome : shown(outcome);
    const words = kind === "label" ? [unit, number] : [number, unit];
    return `**${words.filter(Boolean).join(" ")}**`;
  }

  function read(guess, { kind, outcome }) {
    const text = guess.trim();
    if (typeof outcome === "string") return text;
    const points = kind === "points";
    const digits = points ? text.replace(/%$/, "").replace(/ +$/, "") : text;
    if (!NUMBER.test(digits)) {
      const example = points ? "50 or 50 %" : "50 or 1,024";
      throw new Error(`cannot read the guess “${text}”: write a number alone, such as ${example}`);
    }
    const number = Number(digits.replaceAll(",", ""));
    if (number && !(Math.abs(number) >= 1e-6 && Math.abs(number) < 1e15)) {
      const range = "write 0, or a number from 0.000001 to 10^15 in size";
      throw new Error(`the guess “${text}” is out of range: ${range}`);
    }
    return number;
  }

  function distance(value, { kind, outcome }) {
    if (kind === "label" || typeof value === "string") return ": not the same";
    const off = Math.abs(value - outcome);
    const high = value > outcome;
    if (kind === "points") {
      const points = Number(off.toFixed(1));
      return points <= 1 ? ": within a point" : `: ${shown(points)} points too ${high ? "high" : "low"}`;
    }
    if (kind === "count") return `: ${shown(off)} too ${high ? "many" : "few"}`;
    if (value * outcome <= 0) return "";
    const percent = rounded((100 * off) / Math.abs(outcome), 2);
    const ratio = value / outcome;
    if (percent <= 1) return ": within 1 %";
    if (ratio > 0.5 && ratio < 2) return `: ${shown(percent)} % too ${high ? "high" : "low"}`;
    if (ratio > 1) return `: your guess is ${shown(rounded(ratio, 2))} times that`;
    return `: ${shown(rounded(outcome / value, 2))} times your guess`;
  }

  function compare(guess, quantity) {
    const value = read(guess, quantity);
    const word = typeof value === "string";
    const said = word ? `“${value}”` : shown(value) + (quantity.kind === "points" ? " %" : "");
    const same = word ? plain(value) === plain(quantity.outcome) : shown(value) === shown(quantity.outcome);
    return same
      ? `You guessed ${said}, and that is right: the answer is ${answer(quantity)}.`
      : `You guessed ${said}; the answer is ${answer(quantity)}${distance(value, quantity)}.`;
  }

  function write(place, sentence, bold) {
    const at = sentence.lastIndexOf(bold); // a guess may hold asterisks, such as 2**10, and stands before the answer
    const strong = document.createElement("strong");
    strong.textContent = bold.slice(2, -2);
    place.replaceChildren(sentence.slice(0, at), strong, sentence.slice(at + bold.length));
  }

  function reveal(form, guess) {
    const input = form.querySelector("input");
    const output = form.querySelector("output");
    const quantity = JSON.parse(form.dataset.quantity);
    const bold = answer(quantity);
    try {
      write(output, guess ? compare(guess, quantity) : `The answer is ${bold}.`, bold);
    } catch (error) {
      output.textContent = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
      input.setAttribute("aria-invalid", "true");
      return;
    }
    input.removeAttribute("aria-invalid");
    const details = document.querySelector(`#${form.dataset.answer} details`);
    if (details) details.open = true;
    keep(form.dataset.name, guess);
  }

  for (const form of document.querySelectorAll("form.pa-guess")) {
    const input = form.querySelector("input");
    const guess = kept(form.dataset.name);
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      reveal(form, input.value.trim());
    });
    if (guess !== null) {
      input.value = guess;
      reveal(form, guess);
    }
  }

  window.compareGuess = compare; // for tests
})();
