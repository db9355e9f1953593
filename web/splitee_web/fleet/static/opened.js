// SPDX-License-Identifier: Apache-2.0
// Which device's details are open: its id is in the address, so that a reload shows it again, and Back closes it.

import { useCallback, useEffect, useState } from "./html.js";

const MARK = "#device/";

function inAddress() {
  if (!location.hash.startsWith(MARK)) return null;
  try {
    return decodeURIComponent(location.hash.slice(MARK.length)) || null;
  } catch {
    return null; // typed by hand
  }
}

/** The id of the device, or null; and a function that opens one, or closes with null. */
export function useOpened() {
  const [opened, setOpened] = useState(inAddress);
  useEffect(() => {
    const follow = () => setOpened(inAddress());
    addEventListener("popstate", follow);
    addEventListener("hashchange", follow);
    return () => {
      removeEventListener("popstate", follow);
      removeEventListener("hashchange", follow);
    };
  }, []);
  const open = useCallback((id) => {
    if (id !== null) {
      history.pushState({ isOurs: true }, "", MARK + encodeURIComponent(id));
    } else if (history.state?.isOurs) {
      history.back(); // changes the address, and with it what is open
      return;
    } else {
      history.replaceState(null, "", location.pathname);
    }
    setOpened(id);
  }, []);
  return [opened, open];
}
