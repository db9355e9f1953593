// SPDX-License-Identifier: Apache-2.0
// Words of a fleet's page, in addition to those of every page.

export * from "/shared/words.js";

export const className = (run, index) => run?.class_names?.[index] ?? `class ${index}`;

export const PHASES = {
  gather: "gathering devices", train: "training", evaluate: "evaluation", statistics: "statistics",
  release: "release", finished: "finished",
};
