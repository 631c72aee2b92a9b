// Time limits stay vitest's own, as in the reference server's run of the same suite.
import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["conformance.test.mjs"],
    passWithNoTests: false,
    hideSkippedTests: true,
  },
})
