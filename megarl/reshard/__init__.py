r"""Weights from Megatron's shards to vLLM's shards, without a tensor ever being whole. A weight's way:

    POLICY RANK                                                        ENGINE WORKER
    policy/worker.py     builds WeightSender                           rollout/transfer_engine.py   WeightReceiver

  once, when the engines have started
    sources   which boxes of which HF tensors lie where in this        rollout/recording + record   vLLM's own loader
              rank's parameters, and which ranks hold them             runs over placeholders: which boxes go where in
              (models/ has the one table; regions: strides)            this worker's parameters (strided: their views)
                  \                                                    /
                   session   offer, wanted boxes, nodes: JSON in rank 0's store, sealed (seal), asked by signals
                   topology  who is on which node
                   blocks    what one set of ranks holds x what one set of workers wants: both sides cut alike
                   fanout    direct, node, relay, all_gather: who hands on what; cost chooses by an estimate
                   plan      messages in one order for all; each peer works out its own, none is sent
                   channels  opens an outlet here and an inlet there: network, shared_memory or mapped (channel: what
                             each is)
                   wire      all meet: gloo or NCCL over the sealed store

  each version
    sender    waits for ready/n-r of its workers                       receiver   puts ready/n-r, begins beside sampling
    packer    elements of a place (pack, runs) and their checksums
              (checksum), row after row in one compiled pass
              (row_sums) unless they are rounded or on a GPU
    outlet    network: into a slot, changes only (delta), by the
              wire. shared_memory: into the worker's memory.
              mapped: nowhere, the worker sees the parameters
    message   a sealed header by the wire: version, size,  -------->   reads the header; refuses what is not sealed
              checksums                                                inlet      network: received (and decoded) into
                                                                       staging memory. shared_memory: it is there.
                                                                       mapped: packed once more, by the worker
                                                                       compares checksums; hands on to other workers
    sender    rank 0 waits for taken/n-r of all workers    <--------   puts taken/n-r
              puts verdict/n                               -------->   await_version returns: only now
    tally     bytes and seconds                                        rollout/install    fills vLLM's parameters

Whoever fails says why under failed/ of the publication; all who wait read it at their next look (signals). Then the
session is over, no worker installs, and controller/publication.py connects anew, once.

Beside the way: gather (the reference path: whole tensors on rank 0; also the export of checkpoints), and
`megarl plan`, which calls plan, fanout and cost for machines that are not there. Nothing here knows a model family.
"""
