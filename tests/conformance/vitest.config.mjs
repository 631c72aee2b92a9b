import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["conformance.test.mjs"],
    passWithNoTests: false,
    hideSkippedTests: true,
    testTimeout: 20_000, // vitest's own 5 s are too few for a machine that is busy elsewhere
  },
})
