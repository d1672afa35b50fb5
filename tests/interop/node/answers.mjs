// What the clients here answer when they are asked: the same every time, and the same as
// ../python/answers.py. What they were asked is kept, as it came.

const sampled = { role: "assistant", model: "interop", content: { type: "text", text: "Well." }, stopReason: "endTurn" };
const roots = { roots: [{ uri: "file:///interop", name: "interop" }] };
// Both names are fields that servers here ask for; further ones do no harm.
const filled = { action: "accept", content: { name: "Somebody", response: "Yes" } };

export const ask = {
  capabilities: { sampling: {}, elicitation: { form: {}, url: {} }, roots: {} },

  answer({ method, params }, asked) {
    asked.push({ method, params: params ?? {} });
    switch (method) {
      case "sampling/createMessage":
        return sampled;
      case "roots/list":
        return roots;
      default:
        return params.mode === "url" ? { action: "accept" } : filled;
    }
  },
};

/** Waits for what comes by itself; the comparison tells if it did not. */
export async function until(done) {
  for (const end = Date.now() + 15_000; !done() && Date.now() < end; ) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
