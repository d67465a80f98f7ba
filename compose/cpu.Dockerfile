# vLLM's official CPU image runs as root. This adds the unprivileged user that its GPU image already has.
FROM vllm/vllm-openai-cpu:v0.26.0-x86_64

RUN useradd --uid 2000 --gid 0 --create-home --home-dir /home/vllm vllm

USER 2000:0
ENV HOME=/home/vllm
WORKDIR /home/vllm
