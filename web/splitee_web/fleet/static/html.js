// SPDX-License-Identifier: Apache-2.0
// Elements of the page. Values are inserted as text, never as markup.

export {
  Component, h, html, render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState,
} from "/shared/vendor/htm-3.1.1/standalone.module.js";
import { Component, h } from "/shared/vendor/htm-3.1.1/standalone.module.js";

/** A component that is drawn again only if one of its properties changes, except those in `besides`. */
export function memo(draw, besides = []) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const names = Object.keys({ ...this.props, ...next }).filter((name) => !besides.includes(name));
      return names.some((name) => next[name] !== this.props[name]);
    }

    render() {
      return h(draw, this.props);
    }
  };
}
