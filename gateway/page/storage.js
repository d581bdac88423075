// What the browser remembers, where it may.

const keeper = (storage) => ({
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
      // It is forgotten with this page.
    }
  },
});

/** Kept until it is removed. */
export const kept = keeper("localStorage");

/** Kept for this tab, also when it is loaded again. */
export const keptByTab = keeper("sessionStorage");
