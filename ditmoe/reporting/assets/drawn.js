/* The samples that were just drawn, by themselves: what a demo shows within its page. */
const { runs } = plain(JSON.parse(document.getElementById("data").textContent));
document.getElementById("page").append(el("main", {}, samplesSection(runs)));
