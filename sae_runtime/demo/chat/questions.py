"""Questions of everyday life: some choose the feature and its strength, others measure what came of it."""

TO_CHOOSE = (
    "How do I make a good cup of tea?",
    "What is a nice present for my grandmother?",
    "Why do leaves change their colour in autumn?",
    "How can I learn to swim as an adult?",
    "What should I cook for dinner tonight?",
    "Why do cats purr?",
    "How do I get a stain of red wine out of a shirt?",
    "What can I do on a rainy Sunday?",
    "How far away is the moon?",
    "How do I keep my tomato plants healthy?",
)

TO_MEASURE = (
    "How do I bake a simple loaf of bread?",
    "What should I see in Paris?",
    "Why is the sky blue?",
    "How can I sleep better at night?",
    "What do bees do in winter?",
    "How do I train my dog to sit?",
    "What is a good way to spend a weekend with children?",
    "Why do people dance?",
    "How do I look after a cactus?",
    "Tell me about the life of a sailor long ago.",
    "What makes a good soup?",
    "How do I say sorry to a friend?",
    "Why do rivers bend?",
    "What should I wear to a wedding?",
    "How do I begin to play the guitar?",
    "What do horses eat?",
    "How can I be less afraid of flying?",
    "Why does ice float on water?",
    "What is a good breakfast before a long walk?",
    "How do I plan a birthday party?",
)
