// Preloaded (`node --import`) into the reference servers, which cannot be told either of these:
// - to listen on the loopback interface alone, on a port that the kernel chooses;
// - to tell that a cancellation reached the handler that it names. The SDK then aborts that
//   handler's signal with the reason of the notification, and does nothing when the id is unknown.
// Both are written to the file that INTEROP_LOG names, a line each.

import fs from "node:fs";
import net from "node:net";

const log = (line) => fs.appendFileSync(process.env.INTEROP_LOG, `${line}\n`);

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== "number" && typeof port !== "string") {
    return listen.call(this, port, ...rest);
  }
  const callback = rest.find((argument) => typeof argument === "function");
  return listen.call(this, { port: Number(port), host: "127.0.0.1" }, () => {
    log(`listening ${this.address().port}`);
    callback?.();
  });
};

const abort = AbortController.prototype.abort;
AbortController.prototype.abort = function (reason) {
  if (typeof reason === "string") {
    log(`aborted ${reason}`);
  }
  return abort.call(this, reason);
};
