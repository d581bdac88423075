// Shows the jobs once a second. What comes from the web goes through textContent alone, and never becomes markup.
const [form, error, status, rows] = ["form", "span", "p", "tbody"].map((it) => document.querySelector(it));

const outcome = ({ state, reason, output }) => {
  if (state === "failed") return reason;
  if (state === "waiting") return "";
  if (output.words) {
    const top = output.words.slice(0, 5).map(([word, count]) => `${word} ${count}`).join(", ");
    return `${output.total} words: ${top}`;
  }
  return JSON.stringify(output).slice(0, 200);
};

const show = async () => {
  const { jobs, done, latest } = await (await fetch("word-counts")).json();
  status.textContent = `${jobs} jobs, ${done} done`;
  rows.replaceChildren(...latest.map((job) => {
    const row = document.createElement("tr");
    const page = job.input?.url ?? JSON.stringify(job.input);
    for (const text of [job.task, page, job.state, outcome(job), job.worker ?? ""]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ url: form.url.value });
  const answer = await fetch("word-counts", { method: "POST", headers, body });
  if (answer.ok) form.reset();
  error.textContent = answer.ok ? "" : (await answer.json()).detail;
});

for (;;) {
  await show().catch(() => { status.textContent = "The front gives no answer."; });
  await new Promise((resolve) => setTimeout(resolve, 1000));
}
