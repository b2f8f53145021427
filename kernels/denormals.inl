// For what decays.

// Old traces and second moments decay to denormal numbers, which x86 is a hundred times slower to compute with.
struct [[maybe_unused]] FlushDenormals {
#if defined(__x86_64__)
  unsigned int before = __builtin_ia32_stmxcsr();
  FlushDenormals() { __builtin_ia32_ldmxcsr(before | 0x8040u); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(before); }
#endif
};
