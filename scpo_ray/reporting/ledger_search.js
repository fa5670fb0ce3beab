(() => {
  const input = document.getElementById("ledger-search"), count = document.getElementById("ledger-count");
  const groups = [...document.querySelectorAll("details.ledger")].map((group) => ({
    group, name: group.querySelector("summary").textContent.toLowerCase(), pairs: [...group.querySelectorAll(".pair")],
  }));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0, total = 0;
    for (const { group, name, pairs } of groups) {
      let shown = 0;
      for (const pair of pairs) {
        const text = name + " " + pair.textContent.toLowerCase();
        pair.hidden = !words.every((word) => text.includes(word));
        shown += !pair.hidden; total += 1;
      }
      group.hidden = shown === 0;
      group.open = words.length > 0 && shown > 0;
      found += shown;
    }
    count.textContent = words.length ? `${found} of ${total} pairs` : "";
  });
})();
