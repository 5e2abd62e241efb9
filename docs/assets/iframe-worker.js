// Search runs in a worker, which browsers refuse to a page that was opened as a file. There a hidden frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const send = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      const waiting = [];
      this.postMessage = (data) => waiting.push(data);
      const script = inside.document.createElement("script");
      script.src = url;
      script.onload = () => {
        this.postMessage = send;
        waiting.forEach(send);
      };
      inside.document.head.append(script);
    }
  };
}
