// Values that the browser stores. If a browser forbids that, they are lost with the page.

const store = (storage) => ({
  read(name) {
    try {
      return window[storage].getItem(name);
    } catch {
      return null;
    }
  },
  write(name, value) {
    try {
      if (value) window[storage].setItem(name, value);
      else window[storage].removeItem(name);
    } catch {
      // The value is lost with this page.
    }
  },
});

/** Kept until it is removed. */
export const kept = store("localStorage");

/** Kept while this tab is open, also when it is loaded again. */
export const keptByTab = store("sessionStorage");
