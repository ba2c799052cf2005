// The search of a page that was opened from a disk: browsers let no such page start a worker, so an empty frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.body.appendChild(document.createElement("iframe"));
      frame.hidden = true;
      this.room = frame.contentWindow;
      // What the script of a worker takes to be its own.
      this.room.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.room.importScripts = (...urls) =>
        urls.reduce((before, next) => before.then(() => this.load(next)), Promise.resolve());
      this.loaded = this.load(url);
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.room.document.createElement("script");
        Object.assign(script, { src: url, onload: resolve, onerror: reject });
        this.room.document.body.append(script);
      });
    }

    postMessage(data) {
      this.loaded.then(() => this.room.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
