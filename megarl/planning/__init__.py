"""What a run needs before anything of it starts, by arithmetic: pure, without torch, Ray, vLLM or Megatron.

* `checks`: whether model, layout and lengths go together, and what to change; `changes`: a configuration with others;
* `placement`: which node every worker gets, of the nodes that a run finds (`packing`: exactly; `shortage`: why not);
  `nodes`: of those that the file describes;
* `policy_memory`, `engine_memory`: bytes per GPU; `turns`: of one that both share; `fit`: the changes with which they
  suffice;
* `updates`: micro-batches and the pipeline's bubble; `transfer`: what a publication moves, and for how long;
* `run_plan`: all of it for one configuration, which `megarl plan` prints.
"""
