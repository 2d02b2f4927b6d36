"""What tests share: toys, fakes that are real servers, and programs that tests run in processes of their own."""
