// freestanding: exported functions with scalar arguments, no imports.
#define EXPORT(name) __attribute__((export_name(name)))

EXPORT("add") int add(int a, int b) { return a + b; }
EXPORT("half") double half(double x) { return x / 2; }
EXPORT("big") long long big(long long x) { return x + 1; }
EXPORT("divide") int divide(int a, int b) { return a / b; }
EXPORT("run") int run(void) { return 42; }
