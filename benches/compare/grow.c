// freestanding: takes memory until there is no more, touching all of it.
__attribute__((export_name("run"))) int run(void) {
  int pages = __builtin_wasm_memory_size(0);
  while (__builtin_wasm_memory_grow(0, 16) != (unsigned long)-1)
    for (int page = pages, end = pages = __builtin_wasm_memory_size(0); page < end; page++)
      *(volatile char *)(page << 16) = 1;
  return pages;
}
