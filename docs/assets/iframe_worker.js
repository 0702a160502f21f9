// Search in pages that are opened as files. Browsers start no worker from a `file:` address;
// here the search runs in a hidden frame instead, behind the interface of a worker.
(() => {
  if (location.protocol !== "file:") return;

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.queue = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inner = this.frame.contentWindow;
      // The search calls the global `postMessage` and awaits `importScripts`.
      inner.postMessage = (data) => this.receive(data);
      inner.importScripts = (...sources) => Promise.all(sources.map((source) => this.load(source)));
      this.load(url).then(() => {
        this.ready = true;
        this.queue.splice(0).forEach((data) => this.send(data));
      });
    }

    load(source) {
      const page = this.frame.contentWindow.document;
      return new Promise((resolve, reject) => {
        const script = page.createElement("script");
        script.src = source;
        script.onload = resolve;
        script.onerror = reject;
        page.head.appendChild(script);
      });
    }

    postMessage(data) {
      if (this.ready) this.send(data);
      else this.queue.push(data);
    }

    send(data) {
      const inner = this.frame.contentWindow;
      inner.dispatchEvent(new inner.MessageEvent("message", { data }));
    }

    receive(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
})();
